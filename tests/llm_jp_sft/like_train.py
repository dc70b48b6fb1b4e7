"""Behaves like llm-jp-sft's train.py for its driver: the same options, log lines and files, and no training.

The file `behaviour` beside it says which way it goes wrong. Standard library only.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import time
from pathlib import Path

BLOCK = "\u2588"


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def save(folder: Path, cut: int = 0) -> None:
    header = json.dumps({"weight": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    data = struct.pack("<Q", len(header)) + header + bytes(16)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "model.safetensors").write_bytes(data[: len(data) - cut])
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"pickle")


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in (
        "data_files",
        "model_name_or_path",
        "output_dir",
        "instruction_template",
        "response_template",
        "wandb_group",
    ):
        parser.add_argument(f"--{name}")
    parser.add_argument("--logging_steps", type=int, default=500)
    options, _ = parser.parse_known_args()
    behaviour = (Path(__file__).parent / "behaviour").read_text().strip()
    folder = Path(options.output_dir)
    assert (options.instruction_template, options.response_template) == ("### Human:", "### Assistant:")
    say(f"group {options.wandb_group}")
    say("Map:   0%|          | 0/7 [00:00<?, ? examples/s]", "\r")
    say("2024-04-15 10:00:00,000 __main__:213: INFO: Training")
    say("  0%|          | 0/6 [00:00<?, ?it/s]", "\r")
    for step in range(1, 7):
        if behaviour == "slow":
            time.sleep(0.5)
        if step == 4 and behaviour == "crash":
            say("Traceback (most recent call last):\nRuntimeError: it broke")
            return 1
        if step == 2 and behaviour == "no answer":
            for number in range(3):
                say(f"UserWarning: Could not find response key `[5]` in the following instance: text {number}")
        say(f" {step}%|{BLOCK}    | {step}/6 [00:01<00:04,  1.0s/it]", "\r")
        if step % options.logging_steps == 0:
            loss = "nan" if behaviour == "nan" and step == 4 else repr(3.0 - step / 10)
            say(
                f"                  \r{{'loss': {loss}, 'grad_norm': 1.5, 'learning_rate': 1e-05, 'epoch': {step / 6}}}"
            )
    if behaviour == "ends early":
        return 0
    say(
        "{'train_runtime': 12.5, 'train_samples_per_second': 1, 'train_steps_per_second': 1, 'train_loss': 2.5, 'epoch': 1.0}"
    )
    say("2024-04-15 10:00:09,000 __main__:216: INFO: Saving model")
    (folder / "checkpoint-6").mkdir(exist_ok=True)
    if behaviour != "saves nothing":
        save(folder, cut=3 if behaviour == "cut off" else 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
