"""What is taken for a sample: nothing but one, whatever a node sends."""

from __future__ import annotations

import orjson
import pytest

from core.cluster.agent_sample import read_sample

GPU = {
    "index": 0,
    "name": "x",
    **dict.fromkeys(("util", "memory_used", "memory_total", "temperature", "power", "power_limit", "clock"), 1),
}
SAMPLE = {
    **{"time": 1.0, "host": "n", "seq": 0, "period": 2.0, "nvml": "ok", "nvml_blocked_s": 0.0, "gpus": [GPU]},
    **dict.fromkeys(("cpu", "cores", "load", "memory_used", "memory_total", "disk_free", "disk_total"), 1),
    **{"net_rx": 1, "net_tx": 1, "ib_rx": None, "ib_tx": None, "slow": None},
}


def test_a_whole_sample_is_taken() -> None:
    assert read_sample(orjson.dumps(SAMPLE)) == SAMPLE


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Last login: Tue",
        b"{",
        b"[]",
        b"7",
        b"null",
        b"{}",
        orjson.dumps({**SAMPLE, "time": "now"}),
        orjson.dumps({**SAMPLE, "period": 0}),
        orjson.dumps({**SAMPLE, "period": True}),
        orjson.dumps({**SAMPLE, "cpu": "much"}),
        orjson.dumps({**SAMPLE, "gpus": None}),
        orjson.dumps({**SAMPLE, "gpus": [{"index": 0}]}),
        orjson.dumps({**SAMPLE, "gpus": [{**GPU, "util": [1]}]}),
        orjson.dumps({**SAMPLE, "gpus": ["x"]}),
        orjson.dumps({**SAMPLE, "slow": 7}),
        orjson.dumps({**SAMPLE, "slow": {}}),
        orjson.dumps({**SAMPLE, "slow": {"processes": [7], "gpus": []}}),
        orjson.dumps({**SAMPLE, "slow": {"processes": [], "gpus": [{}]}}),
        orjson.dumps({name: value for name, value in SAMPLE.items() if name != "ib_rx"}),
    ],
)
def test_anything_else_is_not_a_sample(line: bytes) -> None:
    assert read_sample(line) is None
