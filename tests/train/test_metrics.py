import math
from pathlib import Path

import pytest

from core.files import write_json
from core.train.metrics import DataFacts, peak_flops, read_data_facts


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla T4", None),
        (None, None),
    ],
)
def test_the_peak_follows_from_the_gpus_name(name: str | None, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_bits_per_byte_count_the_text_behind_the_validation_tokens(tmp_path: Path) -> None:
    valid = {"tokens": 1000, "text_bytes": 4000}
    write_json(tmp_path / "t.manifest.json", {"splits": {"valid": valid}, "unigram_entropy_nats": 6.5})
    facts = read_data_facts(tmp_path / "t")
    assert facts.bits_per_byte(4 * math.log(2)) == pytest.approx(1.0)
    assert facts.unigram_entropy_nats == 6.5


@pytest.mark.parametrize("document", [None, {}, {"splits": {}}, {"splits": {"valid": {"tokens": 10, "text_bytes": 0}}}])
def test_unknown_is_none_and_not_a_number(tmp_path: Path, document: dict[str, object] | None) -> None:
    if document is not None:
        write_json(tmp_path / "t.manifest.json", document)
    assert read_data_facts(tmp_path / "t") == DataFacts()
    assert DataFacts().bits_per_byte(3.0) is None
