"""The Doctor mode on the real `llm-wizard doctor`; a small program stands in for it where it has to hang, lie or die."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from screen_text import assert_layout_holds, screen_lines, screen_text, shown, until, until_shown

from tui.app import WizardApp
from tui.doctor_board import DoctorBoard
from tui.draft import Draft
from tui.screens.doctor import DoctorScreen
from tui.screens.fix import FixScreen
from tui.widgets.keyed_list import KeyedList

from .stand_in import stand_in

pytestmark = pytest.mark.anyio

SIZES = [(80, 24), (160, 48)]


def saying(*records: object) -> str:
    """A program that prints these records as `doctor --stream` does."""
    lines = [json.dumps(record) for record in records]
    return f"print({chr(10).join(lines)!r}, flush=True)\n"


def check(id: str, group: str = "python", title: str = "") -> dict[str, Any]:
    return {"kind": "check", "id": id, "title": title or f"the {id}", "group": group, "scope": "node", "tier": "quick"}


def finding(id: str, status: str = "pass", node: str = "head", **values: Any) -> dict[str, Any]:
    values = {"summary": f"{id} is {status}", "expected": "", "found": "", "why": "", "fix": None} | values
    return {"kind": "finding", "id": id, "node": node, "status": status, "group": "python", **values}


REPORT = {"kind": "report", "status": "pass", "stages": {"data": [], "pretrain": ["limits"]}}


async def open_doctor(pilot: Any) -> DoctorScreen:
    await pilot.press("2")
    await until(pilot, lambda: isinstance(pilot.app.screen, DoctorScreen))
    return pilot.app.screen


@pytest.mark.parametrize("size", SIZES)
async def test_the_real_doctor_fills_the_list_and_ends(tmp_path: Path, size: tuple[int, int]) -> None:
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=size) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "the training Python")
        await until(pilot, lambda: shown(app, "#readiness"), 60)
        assert "✔ pass" in screen_text(app)
        assert "waiting" not in screen_text(app)
        assert "preset quickstart" in shown(app, "#summary")
        assert app.screen.query_one("#checks").has_focus
        assert not app.screen.query_one("#trouble").display
        assert_layout_holds(app)


async def test_checks_wait_with_a_mark_until_they_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = tmp_path / "gate"
    program = (
        saying(check("one"), check("two"))
        + saying(finding("one"))
        + f"import os, time\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.01)\n"
        + saying(finding("two", "fail"), REPORT)
    )
    stand_in(monkeypatch, program)
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "one is pass")
        assert "· waiting  the two" in screen_text(app)
        assert "· waiting 1" in shown(app, "#summary")
        gate.touch()
        await until_shown(pilot, "two is fail")
        assert "waiting" not in screen_text(app)
        assert "✘ fail 1" in shown(app, "#summary")
        assert app.screen.query_one("#checks", KeyedList).key == "two#0", "the cursor is on the first problem"
        assert "not ready: pretrain (limits)" in shown(app, "#readiness")
        assert "ready: data" in shown(app, "#readiness")


async def test_equal_findings_of_many_nodes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [f"node-{number:03d}" for number in range(1, 8)]
    odd = {"found": "2.1.2", "summary": "torch 2.1.2"}
    records = [check("torch", title="torch")]
    records += [finding("torch", node=node, summary="torch 2.2.0") for node in nodes[:-1]]
    records += [finding("torch", "fail", nodes[-1], **odd), REPORT]
    stand_in(monkeypatch, saying(*records))
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(160, 48)) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "6 nodes: torch 2.2.0")
        assert "node-007: torch 2.1.2" in screen_text(app)
        await pilot.press("down")
        await until_shown(pilot, "node-001, node-002, node-003")


@pytest.mark.parametrize("size", SIZES)
async def test_enter_shows_what_is_known_and_escape_goes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    fix = {"id": "limits", "risk": "rebuild", "preview": ["ulimit -n 4096 [bold]"], "runnable": True}
    values = {"found": "1024 [red]\x1b[31m files", "expected": "4096 files", "why": "ranks open many", "fix": fix}
    stand_in(monkeypatch, saying(check("limits"), finding("limits", "fail", **values), REPORT))
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=size) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "limits is fail")
        await pilot.press("enter")
        await until_shown(pilot, "1024 [red] files")
        box = app.screen.query_one("#detail-box")
        assert box.has_focus
        assert screen_lines(app)[-1].startswith("f Fix")
        assert "esc Back" in screen_lines(app)[-1]
        box.scroll_end(animate=False)
        await until_shown(pilot, "ulimit -n 4096 [bold]")
        detail = shown(app, "#detail")
        for said in ("4096 files", "ranks open many", "a rebuild: it replaces what is there, and takes minutes"):
            assert said in detail
        await pilot.press("escape")
        assert app.screen.query_one("#checks").has_focus
        assert box.display == (size[0] > 100)


async def test_p_shows_only_problems_and_says_when_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, saying(check("good"), check("bad"), finding("good"), finding("bad", "warn"), REPORT))
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "bad is warn")
        await pilot.press("p")
        await until(pilot, lambda: "good is pass" not in screen_text(app))
        assert "bad is warn" in screen_text(app)
        stand_in(monkeypatch, saying(check("good"), finding("good"), REPORT))
        await pilot.press("r")
        await until_shown(pilot, "No problem. p shows all checks.")
        await pilot.press("p")
        await until_shown(pilot, "good is pass")


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("raise RuntimeError('out of luck')", "The doctor ended early (exit code 1)"),
        ("print('<html>not json</html>')", "<html>not json</html>"),
        ("print('{\"kind\": 3}'); print('[]'); print('null')", "it said nothing"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "exit code -9"),
        (
            "sys.stderr.write('\\x1b[31mno [red]such[/red] preset\\x1b]0;x\\x07'); sys.exit(64)",
            "no [red]such[/red] preset",
        ),
        ("print('x' * 10_000_000)", "xxxxxxxx"),
    ],
)
async def test_a_doctor_that_dies_or_talks_rubbish_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, sentence: str
) -> None:
    stand_in(monkeypatch, program)
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until(pilot, lambda: sentence in shown(app, "#trouble"))
        assert app.screen.query_one("#trouble").display
        assert app.is_running


async def test_what_a_doctor_did_not_answer_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, saying(check("one"), check("two"), finding("one")) + "sys.exit('killed')")
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "? unknown 1")
        await until_shown(pilot, "the doctor ended before it got to it")


async def test_it_judges_for_the_preset_that_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    stand_in(monkeypatch, f"open({str(asked)!r}, 'a').write(repr(sys.argv[1:]) + chr(10))\n" + saying(REPORT))
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until(pilot, asked.is_file)
        app.draft = Draft.from_preset("quickstart")
        app.draft.set("pretrain.steps", "7")
        await pilot.press("1", "2")
        await until(pilot, lambda: asked.read_text().count("\n") == 2)
        await pilot.press("1", "2")  # nothing has changed: nothing is asked again
        await pilot.pause(0.2)
    first, second = (eval(line) for line in asked.read_text().splitlines())
    assert first[first.index("doctor") :] == ["doctor", "--stream", "--tier", "quick"]
    expected = ["--preset", "quickstart", "--set", "pretrain.steps=7", "--tier", "quick"]
    assert second[second.index("doctor") :] == ["doctor", "--stream", *expected]
    assert first[:2] == ["--lang", "en"]


async def test_the_full_tier_asks_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = saying(check("one")) + "print(%s)\n" % "sys.argv" + saying(finding("one"), REPORT)  # noqa: UP031
    stand_in(monkeypatch, program + "open(sys.argv[4] + '-' + sys.argv[-1], 'w')")
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until(pilot, (tmp_path / "runs-quick").is_file)
        await pilot.press("a")
        await until_shown(pilot, "Make all checks?")
        await pilot.press("enter")  # "no" is what Enter takes
        await until(pilot, lambda: isinstance(app.screen, DoctorScreen))
        assert not (tmp_path / "runs-full").exists()
        await pilot.press("a")
        await until_shown(pilot, "Make all checks?")
        await pilot.press("y")
        await until(pilot, (tmp_path / "runs-full").is_file)
        await until_shown(pilot, "all checks for preset")


async def test_leaving_ends_the_doctor_and_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = tmp_path / "pids"
    stand_in(
        monkeypatch,
        f"""
        import os, subprocess, time
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        with open({str(pids) + ".new"!r}, "w") as file:
            file.write(f"{{os.getpid()}} {{child.pid}}")
        os.rename({str(pids) + ".new"!r}, {str(pids)!r})
        time.sleep(600)
        """,
    )
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until(pilot, pids.is_file)
    for pid in map(int, pids.read_text().split()):
        deadline = time.monotonic() + 10
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"{pid} still runs"
            await asyncio.sleep(0.02)


async def test_a_real_fix_shows_its_commands_runs_and_checks_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    bashrc = home / ".bashrc"
    bashrc.write_text("export A=1\nexport PATH=/x:$PATH\nexport PATH=/x:$PATH\n")
    monkeypatch.setenv("HOME", str(home))
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        doctor = await open_doctor(pilot)
        await until(pilot, lambda: "ready" in shown(app, "#readiness") or "can run" in shown(app, "#readiness"), 60)
        doctor.show_check("shell.bashrc_dup")
        await until(pilot, lambda: doctor.query_one("#checks", KeyedList).key == "shell.bashrc_dup#0")
        await pilot.press("f")
        await until_shown(pilot, "y runs these commands")
        assert "-export PATH=/x:$PATH    (line 3)" in screen_text(app)
        assert bashrc.read_text().count("PATH=/x") == 2, "nothing runs before the user agrees"
        await pilot.press("y")
        await until_shown(pilot, "Really run these commands?")  # it takes lines away
        await pilot.press("y")
        await until_shown(pilot, "✔ done")
        assert bashrc.read_text().count("PATH=/x") == 1
        assert list(home.glob(".bashrc.bak-*")), "the old one is kept"
        assert "removed 1 lines" in screen_text(app)
        await pilot.press("escape")
        await until(pilot, lambda: "repeats nothing" in shown(app, "#detail"))
        assert_layout_holds(app)


async def test_only_the_mended_check_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fix = {"id": "mend", "risk": "safe", "preview": ["touch mended"], "runnable": True}
    mended, asked = tmp_path / "mended", tmp_path / "asked"
    stand_in(
        monkeypatch,
        f"""
        import json, os
        open({str(asked)!r}, "a").write(" ".join(sys.argv[1:]) + "\\n")
        if "--dry-run" in sys.argv:
            print("# 1/1 mend (safe): the file\\ntouch mended")
        elif "--fix" in sys.argv:
            open({str(mended)!r}, "w")
            print("touched \\x1b[2J[red]it[/red]")
        elif "--only" in sys.argv or not os.path.exists({str(mended)!r}):
            good = os.path.exists({str(mended)!r})
            bad = {finding("one", "fail", fix=fix)!r}
            print(json.dumps({check("one")!r}))
            print(json.dumps({finding("one")!r} if good else bad))
            if not good:
                print(json.dumps({check("two")!r}))
                print(json.dumps({finding("two", "warn")!r}))
            print(json.dumps({REPORT!r}))
        """,
    )
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "two is warn")
        await pilot.press("f")
        await until_shown(pilot, "y runs these commands")
        await pilot.press("y")  # a safe fix runs at once
        await until_shown(pilot, "touched [red]it[/red]")
        await until_shown(pilot, "✔ done")
        await pilot.press("escape")
        await until_shown(pilot, "one is pass")
        assert "two is warn" in screen_text(app), "what was not asked again stays"
    last = asked.read_text().splitlines()[-1]
    assert last.endswith("doctor --stream --tier quick --only one")
    assert asked.read_text().count("--yes") == 1


async def test_a_fix_can_be_cancelled_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fix = {"id": "mend", "risk": "rebuild", "preview": ["make -j"], "runnable": True}
    pid_file = tmp_path / "pid"
    stand_in(
        monkeypatch,
        f"""
        import json, os, subprocess, time
        if "--dry-run" in sys.argv:
            print("make -j")
        elif "--fix" in sys.argv:
            child = subprocess.Popen(["sleep", "600"], start_new_session=True)
            print("compiling", flush=True)
            open({str(pid_file)!r}, "w").write(str(child.pid))
            try:
                child.wait()
            except KeyboardInterrupt:
                child.terminate()
                print("interrupted", flush=True)
                sys.exit(130)
        else:
            print(json.dumps({check("one")!r}))
            print(json.dumps({finding("one", "fail", fix=fix)!r}))
            print(json.dumps({REPORT!r}))
        """,
    )
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "one is fail")
        await pilot.press("f")
        await until_shown(pilot, "y runs these commands")
        await pilot.press("y")
        await until_shown(pilot, "compiling")
        await until(pilot, lambda: pid_file.is_file() and pid_file.read_text())
        await pilot.press("escape")
        assert isinstance(app.screen, FixScreen), "a running fix is not left by accident"
        await pilot.press("x")
        await until_shown(pilot, "■ stopped")
        assert "interrupted" in screen_text(app)
        await until(pilot, lambda: not psutil.pid_exists(int(pid_file.read_text())))
        await pilot.press("escape")
        await until_shown(pilot, "one is fail")


async def test_a_fix_that_is_refused_says_why_and_offers_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix = {"id": "mend", "risk": "safe", "preview": ["touch x"], "runnable": True}
    program = "if '--fix' in sys.argv: sys.exit('run demo is running: nothing is mended under it')\n"
    stand_in(monkeypatch, program + saying(check("one"), finding("one", "fail", fix=fix), REPORT))
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "one is fail")
        await pilot.press("f")
        await until_shown(pilot, "run demo is running: nothing is mended under it")
        assert "Run these commands" not in screen_text(app)
        await pilot.press("y", "x")
        assert isinstance(app.screen, FixScreen)


async def test_what_cannot_be_mended_from_here_is_shown_to_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix = {"id": "advice", "risk": "safe", "preview": ["apt-get install g++"], "runnable": False}
    stand_in(monkeypatch, saying(check("one"), finding("one", "fail", fix=fix), check("two"), finding("two"), REPORT))
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "one is fail")
        await pilot.press("f")
        await until_shown(pilot, "apt-get install g++")
        assert "This cannot be mended from here" in screen_text(app)
        await pilot.press("y")
        assert "Run these" not in screen_text(app)
        await pilot.press("c")
        assert app.clipboard == "apt-get install g++"
        await pilot.press("escape", "down", "f")
        await until_shown(pilot, "There is nothing to mend here.")


async def test_c_copies_the_commands_else_the_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fix = {"id": "advice", "risk": "safe", "preview": ["one", "two"], "runnable": False}
    stand_in(
        monkeypatch, saying(check("a"), finding("a", "fail", fix=fix), check("b"), finding("b", found="7"), REPORT)
    )
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await open_doctor(pilot)
        await until_shown(pilot, "a is fail")
        await pilot.press("c")
        assert app.clipboard == "one\ntwo"
        await pilot.press("down", "c")
        assert "b is pass" in app.clipboard
        assert "Found\n7" in app.clipboard


async def test_a_check_of_another_tier_is_made_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "name = 'slow' if '--only' in sys.argv else 'quick'\nimport json\n"
    program += f"print(json.dumps({check('@')!r}).replace('@', name)); print(json.dumps({finding('@')!r}).replace('@', name))\n"
    stand_in(monkeypatch, program + saying(REPORT))
    app = WizardApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await app.open_check("slow")
        await until_shown(pilot, "slow is pass")
        assert app.screen.query_one("#checks", KeyedList).key == "slow#0"
        assert "quick is pass" in screen_text(app)


def test_a_report_on_few_checks_keeps_what_others_stand_in_the_way_of() -> None:
    board = DoctorBoard()
    for record in (check("a"), check("b"), {"kind": "report", "stages": {"data": ["a"], "pretrain": ["a", "b"]}}):
        assert board.take(record)
    for record in (check("a"), finding("a"), {"kind": "report", "stages": {"data": [], "pretrain": []}}):
        assert board.take(record)
    assert board.readiness() == (["data"], {("b",): ["pretrain"]})


def test_the_board_refuses_what_it_does_not_know() -> None:
    board = DoctorBoard()
    for record in (None, [], 3, {}, {"kind": "finding"}, {"kind": "check", "id": ""}, {"kind": "news", "id": "x"}):
        assert not board.take(record)
    assert board.take({"kind": "finding", "id": "x", "status": "splendid", "fix": 3, "found": None})
    assert [line.status for line in board.lines()] == ["unknown"]


def test_128_nodes_fold_into_two_lines() -> None:
    board = DoctorBoard()
    board.take(check("torch"))
    for number in range(128):
        board.take(finding("torch", node=f"node-{number}", summary="2.2.0" if number != 7 else "2.1.2"))
    assert [len(line.nodes) for line in board.lines()] == [127, 1]
    assert board.counts() == {"pass": 1}
