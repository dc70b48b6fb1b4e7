"""deepspeed.compression.compress, which DeepSpeed 0.19.7 took away; Megatron calls it only with "compression_training" in the ds_config."""

from __future__ import annotations

from typing import NoReturn


def _missing(*args: object, **kwargs: object) -> NoReturn:
    raise ImportError("model compression needs DeepSpeed 0.19.6 or older: pip install 'deepspeed<=0.19.6'")


init_compression = redundancy_clean = _missing
