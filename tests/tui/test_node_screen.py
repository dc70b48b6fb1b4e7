"""One node: its GPUs with their last minutes, the machine, the run's processes."""

from __future__ import annotations

import json
import time
from typing import Any

import orjson
import pytest
from screen_text import assert_layout_holds, screen_text, until, until_shown

import tui.screens.node
from core.cluster.samples import NodeSamples, NodeView
from core.runs.directory import RunDirectory
from tui.app import WizardApp
from tui.node_rows import gpu_bar, node_rows, problems, rate
from tui.screens.node import NodeScreen
from tui.screens.run import RunScreen
from tui.widgets.node_grid import NodeGrid

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look more often, so that tests wait less."""
    monkeypatch.setattr(tui.screens.node, "LOOK_S", 0.1)


async def open_node(pilot: Any, run: RunDirectory) -> NodeScreen:
    pilot.app.watched = run
    await pilot.press("5")
    await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen))
    await pilot.press("g")
    grid = pilot.app.screen.query_one(NodeGrid)
    await until(pilot, lambda: grid.rows and grid.has_focus)
    await pilot.press("home")
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(pilot.app.screen, NodeScreen))
    return pilot.app.screen


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
async def test_enter_opens_the_node_and_escape_goes_back(run: RunDirectory, size: tuple[int, int]) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=size) as pilot:
        screen = await open_node(pilot, run)
        await until_shown(pilot, screen.host)
        await until_shown(pilot, "load, last 5 min")
        text = screen_text(app)
        for expected in ("NVIDIA H100", "1980MHz", "640/700W", "96 cores", "python", "60/80GiB"):
            assert expected in text
        assert text.count("1980MHz") == 8
        assert_layout_holds(app)
        await pilot.press("v")
        await until_shown(pilot, "memory, last 5 min")
        await pilot.press("m")
        await until_shown(pilot, "memory, last 30 min")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(app.screen, RunScreen))


async def test_new_samples_are_shown(run: RunDirectory) -> None:
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await open_node(pilot, run)
        await until_shown(pilot, "load, last 5 min")
        path = run.nodes / f"{screen.host}.jsonl"
        sample = json.loads(path.read_text().splitlines()[-1])
        sample["gpus"][3]["clock"] = 1234
        sample["time"] += 2
        with path.open("a") as file:
            file.write(json.dumps(sample) + "\n")
        await until_shown(pilot, "1234MHz")


async def test_a_node_without_gpus_or_with_hostile_names(run: RunDirectory) -> None:
    for path in run.nodes.iterdir():
        path.unlink()
    sample = {
        **{"time": time.time() + 60, "host": "cpu-1", "seq": 1, "period": 2.0, "gpus": [], "nvml": "absent"},
        **{"nvml_blocked_s": 0.0, "cpu": None, "cores": None, "load": None, "memory_used": None, "memory_total": None},
        **{"disk_free": None, "disk_total": None, "net_rx": None, "net_tx": None, "ib_rx": None, "ib_tx": None},
        "slow": {
            "processes": [
                {
                    **dict.fromkeys(("rank", "local_rank", "gpu", "cpu", "rss", "gpu_memory")),
                    "pid": 7,
                    "name": "\x1b[31m[b]x",
                }
            ],
            "gpus": [],
        },
    }
    (run.nodes / "cpu-1.jsonl").write_bytes(orjson.dumps(sample) + b"\n")
    app = WizardApp(run.root.parent)
    async with app.run_test(size=(80, 24)) as pilot:
        await open_node(pilot, run)
        await until_shown(pilot, "No GPU: absent")
        await until_shown(pilot, "[b]x")
        assert_layout_holds(app)


# --- what is said of a node


def view(**values: Any) -> NodeView:
    sample = {
        "gpus": [{"index": index, "util": 90, "temperature": 60} for index in range(8)],
        "nvml": "ok",
        "nvml_blocked_s": 0.0,
        "disk_free": 50,
        "disk_total": 100,
    }
    sample |= values.pop("sample", {})
    facts = {"host": "n", "slow": None, "age_s": 1.0, "status": "ok", "error": ""} | values
    return NodeView(sample=sample, **facts)


def test_what_is_wrong_is_said_in_words() -> None:
    assert problems(view()) == []
    assert problems(view(sample={"nvml": "Driver/library version mismatch"})) == [
        "NVML: Driver/library version mismatch"
    ]
    assert "silent" in problems(view(sample={"nvml_blocked_s": 42.0}))[0]
    assert "hot" in problems(view(sample={"gpus": [{"index": 0, "util": 1, "temperature": 91}]}))[0]
    assert "disk" in problems(view(sample={"disk_free": 1}))[0]
    assert problems(view(error="ssh: [red]refused\x1b[31m")) == ["ssh: [red]refused"]
    slow = {"gpus": [{"index": 2, "ecc": 3, "throttle": "power cap", "xid": 79}], "processes": []}
    found = problems(view(slow=slow))
    assert any("3 memory errors" in word for word in found)
    assert any("Xid 79" in word for word in found)
    assert any("power cap" in word for word in found)


def test_the_worst_node_stands_first_and_equal_ones_by_name() -> None:
    views = [
        view(host="b"),
        view(host="a"),
        view(host="old", status="stale", age_s=8.0),
        view(host="gone", status="lost", age_s=99.0),
        view(host="sick", error="ended"),
        view(host="warm", sample={"gpus": [{"index": 0, "util": 90, "temperature": 71}]}),
    ]
    assert [row.host for row in node_rows(views)] == ["gone", "sick", "old", "warm", "a", "b"]


def test_small_changes_of_temperature_do_not_change_the_order() -> None:
    first = [
        view(host=host, sample={"gpus": [{"index": 0, "util": 9, "temperature": t}]})
        for host, t in (("a", 61), ("b", 64))
    ]
    assert [row.host for row in node_rows(first)] == ["a", "b"]


def test_a_node_that_never_sent_a_sample_is_a_row_all_the_same() -> None:
    row = node_rows([NodeView("n", None, None, 12.0, "lost", "ssh: no route to host")])[0]
    assert (row.host, row.status, row.bars, row.temperature) == ("n", "lost", (), "")
    assert row.problems == ("ssh: no route to host",)


@pytest.mark.parametrize(
    ("util", "bar", "digit"), [(None, "?", "?"), (0, "▁", "0"), (50, "▅", "5"), (100, "█", "9"), (250, "█", "9")]
)
def test_a_gpu_is_one_cell(util: float | None, bar: str, digit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_bar(util) == bar
    monkeypatch.setenv("LLM_WIZARD_ASCII", "1")
    assert gpu_bar(util) == digit


def test_rates_have_decimal_prefixes() -> None:
    assert [rate(value) for value in (None, 0, 999, 1.5e6, 2.35e9, 5e10)] == ["?", "0B", "999B", "1.5M", "2.35G", "50G"]


def test_the_contract_with_the_reader_of_samples(run: RunDirectory) -> None:
    views = NodeSamples(run).look(time.time())
    assert {view.host for view in views} == {"node-001", "node-002"}
    assert all(row.bars for row in node_rows(views))
