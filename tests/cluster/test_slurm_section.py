"""slurm: what may be asked of Slurm, and what is refused because it would be read as something else."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from core.cluster.slurm_section import SlurmSection, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("1:00:00", 3600),
        ("3-12", 302400),
        ("1-2:30", 95400),
        ("1-02:03:04", 93784),
        ("UNLIMITED", None),
    ],
)
def test_a_time_is_read_as_sbatch_reads_it(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "values",
    [
        {"partition": "a3\n#SBATCH --wrap=x"},
        {"partition": "--wrap=touch X"},
        {"account": "a b"},
        {"qos": "$(touch X)"},
        {"reservation": "r'"},
        {"constraint": "a100 --wrap=x"},
        {"comment": "one\ntwo"},
        {"comment": "\x1b[2J"},
        {"mem": "lots"},
        {"time": "tomorrow"},
        {"time": "1:2:3:4"},
        {"nodes": 0},
        {"extra": ["exclusive"]},
        {"extra": ["-x node1"]},
        {"extra": ["--exclusive\n#SBATCH --wrap=x"]},
        {"extra": ["--exclusive --wrap=x"]},
        {"unknown": "x"},
    ],
)
def test_a_value_that_is_more_than_a_value_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SlurmSection.model_validate(values)


def test_a_whole_option_that_the_run_rests_on_is_refused_with_the_reason() -> None:
    with pytest.raises(ValidationError, match="--signal is set by llm-wizard"):
        SlurmSection(extra=["--signal=TERM@10"])
    with pytest.raises(ValidationError, match=r"slurm\.gpus_per_node"):
        SlurmSection(extra=["--gpus-per-node=8"])


def test_a_time_limit_that_leaves_no_time_is_refused() -> None:
    with pytest.raises(ValidationError, match="begin to save 300 s before its end"):
        SlurmSection(time="5")
    SlurmSection(time="5", signal_before=60)
    SlurmSection(time="UNLIMITED")


def test_only_what_is_set_is_asked_for() -> None:
    section = SlurmSection.model_validate(
        {"time": 90, "mem": 0, "gpus_per_node": 0, "extra": ["--exclusive", "--gres=gpu:a100:8"]}
    )
    assert section.options() == [
        ("time", "90"),
        ("gpus-per-node", "0"),
        ("mem", "0"),
        ("exclusive", None),
        ("gres", "gpu:a100:8"),
    ]
