"""`presets list`: every preset with its cluster, size and parallelism, readable in 80 columns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from conftest import wizard
from core.preset_listing import preset_row, preset_table
from core.preset_source import shipped_presets

ROWS = {name: preset_row(name, path) for name, path in shipped_presets().items()}


def test_each_name_has_a_line_with_its_facts_and_its_sentence_below() -> None:
    text = preset_table(list(ROWS.values()), 80)
    assert max(map(len, text.splitlines())) <= 80
    for name, row in ROWS.items():
        assert re.search(rf"^{re.escape(name)} +{re.escape(row['cluster'])} ", text, re.MULTILINE)
        assert row["description"] in re.sub(r"\n    ", " ", text)


@pytest.mark.parametrize(
    ("name", "cluster", "size", "parallelism"),
    [
        ("abci-2x8-gpt-1.3b-zero1-dp4-pp2-tp2", "2 x 8", "1.3B", "zero1 dp4 pp2 tp2"),
        ("gcp-2-nodes-gpt-125m-zero1", "2 x all", "125M", "zero1 dp*"),
        ("gcp-play-1x8-gpt-125m-zero0-mbs8-sbatch", "1 x 8", "125M", "zero0 dp8"),
        ("abci-2x8-sft-zero3", "2 x 8", "-", "zero3"),
        ("gcp-play-preprocess", "1 x 0", "-", "-"),
        ("quickstart", "-", "3M", "zero auto"),
    ],
)
def test_cluster_size_and_parallelism_are_the_presets(name: str, cluster: str, size: str, parallelism: str) -> None:
    row = ROWS[name]
    assert (row["cluster"], row["size"], row["parallelism"]) == (cluster, size, parallelism)


def test_a_name_says_what_its_preset_does() -> None:
    for name, row in ROWS.items():
        if "-gpt-" in name:
            assert f"-{row['size'].lower()}-" in name
            for part in row["parallelism"].split():
                assert part in name or part in ("dp*", "dp1", "dp2", "dp8", "dp16")
        if shape := re.search(r"-(\d+)x(\d+)-", name):
            assert row["cluster"] == f"{shape[1]} x {shape[2]}"


def test_the_verb_prints_the_same_table_and_document(tmp_path: Path) -> None:
    assert wizard("presets", cwd=tmp_path, COLUMNS="80").stdout == preset_table(list(ROWS.values()), 80)
    assert json.loads(wizard("presets", "list", "--json", cwd=tmp_path).stdout)["presets"] == list(ROWS.values())
