"""The original's launcher: what it is given, and, with real pdsh and sshd, that our ranks end and nobody else's do."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted_runs import wait_for

from conftest import MakeRun
from core.cluster.deepspeed_launcher import deepspeed_argv, environment_lines, launcher_environment, rank_environment
from core.errors import InputError, StageError
from core.files import write_json
from core.runs.directory import RunDirectory

RANK = """
import json, os, pathlib, signal, sys, time
stage, run = sys.argv[1], pathlib.Path(sys.argv[2])
rank = os.environ["RANK"]
if os.environ.get("DIES_AT_ONCE") == rank:
    sys.exit(3)
def stop(*_):
    (run / f"saved-{rank}").touch()
    time.sleep(0.3)
    sys.exit(130)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGUSR1, lambda *_: (run / f"stack-{rank}").touch())
new = run / f"new-{rank}"
new.write_text(json.dumps({"env": dict(os.environ), "argv": sys.argv, "cwd": os.getcwd(), "host": os.uname().nodename}))
new.rename(run / f"rank-{rank}")
print("rank", rank, "is at work")
while not (run / "finish").exists():
    if (run / f"die-{rank}").exists():
        sys.exit(3)
    time.sleep(0.05)
"""
DRIVER = """
import json, os, pathlib, sys
from core.cluster.contact import Limits
from core.cluster.deepspeed_launcher import DeepSpeedProcess
from core.cluster.reach import SshReach
from core.cluster.survey import NodeFacts
from core.files import read_json
from core.runs.directory import RunDirectory
run = RunDirectory(pathlib.Path(sys.argv[1]))
asked = read_json(run.root / "asked.json")
nodes = list(asked["addresses"])
facts = {
    node: NodeFacts(node, node, node, sys.executable, "3", 1, 1, (), address, "eth0", 29511)
    for node, address in asked["addresses"].items()
}
said = (run.root / "events").open("a", buffering=1)
event = lambda kind, **values: said.write(json.dumps({"kind": kind, **values}) + "\\n")
with run.log("pretrain").open("ab", buffering=0) as log:
    process = DeepSpeedProcess.start(
        asked["stage"], asked["env"], run, facts, nodes, SshReach(), 10, log, event, python=sys.executable,
        limits=Limits(back_within=6.0, silence=7.0, lost_grace=1.0, safe_again=11.0),
    )
    stopped = False
    while (code := process.pump(0.1)) is None:
        (run.root / "launcher").write_text(str(process.pid or 0))
        if (run.root / "stop").exists() and not stopped:
            stopped = True
            process.terminate()
        if (run.root / "stacks").exists():
            (run.root / "stacks").unlink()
            process.ask_for_stacks()
    process.kill_all()
event("over", code=code, troubles=[[trouble.kind, trouble.node, trouble.rank] for trouble in process.troubles])
"""
OTHERS = "--world_info=of-others"
HOSTILE = {
    "SEMICOLON": "a; touch X & touch X | touch X",
    "QUOTE": "it's < X",
    "GLOB": "* ~ ^mlx5_0 [a-z]",
    "JAPANESE": "実験 1",
    "EMPTY": "",
}


def argv_of(run: RunDirectory) -> list[str]:
    return deepspeed_argv(run, "pretrain", sys.executable)


@pytest.mark.parametrize("name", ["a b", "a;b", "$(touch X)", "a'b", 'a"b', "a%nb", "a&b", "a\nb", "a*"])
def test_a_path_that_a_shell_would_take_apart_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="to a shell on every node"):
        argv_of(RunDirectory(tmp_path / name))


def test_another_program_may_stand_in_place_of_the_stage(tmp_path: Path) -> None:
    script = ["/x/pretrain_gpt.py", "--split", "949,50,1", "--tensorboard-dir", "/t/job_{host}_{started}", "--fp16"]
    assert deepspeed_argv(RunDirectory(tmp_path), "pretrain", sys.executable, script)[-6:] == script
    for word in ("a $b", "$(touch X)", "", "{node_rank}", "--x;y"):
        with pytest.raises(InputError, match="to a shell on every node"):
            deepspeed_argv(RunDirectory(tmp_path), "pretrain", sys.executable, [*script, word])


@pytest.mark.parametrize("value", ["$(touch X)", "`touch X`", 'a"b', "a\\b", "a\nB=c", "%h", " a", "a ", "\x1b[2J"])
def test_a_value_that_would_not_arrive_as_it_is_is_refused_by_name(value: str) -> None:
    with pytest.raises(StageError, match="cannot pass NAME="):
        environment_lines({"NAME": value})


def test_the_launcher_gets_little_of_this_machines_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_WIZARD_HOME", str(tmp_path))
    environ = {
        "PATH": "/bin",
        "HOME": "/h",
        "MLFLOW_TRACKING_TOKEN": "t",
        "PYTHONPATH": "/x",
        "NCCL_DEBUG": "INFO",
        "SSH_AUTH_SOCK": "/s",
    }
    own = launcher_environment(environ, {"DS_ACCELERATOR": "cpu"}, Path("/run/.deepspeed_env"))
    assert set(own) == {
        "PATH", "HOME", "SSH_AUTH_SOCK", "DS_ACCELERATOR", "PDSH_RCMD_TYPE", "PDSH_SSH_ARGS_APPEND", "DS_ENV_FILE",
        "PYTHONUNBUFFERED",
    }  # fmt: skip
    assert "-oStrictHostKeyChecking=yes" in own["PDSH_SSH_ARGS_APPEND"].split()


def test_pdsh_is_pointed_to_our_ssh_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("home", "with space"):
        (tmp_path / folder / "ssh").mkdir(parents=True)
        (tmp_path / folder / "ssh" / "config").touch()
    monkeypatch.setenv("LLM_WIZARD_HOME", str(tmp_path / "home"))
    own = launcher_environment({}, {}, tmp_path)
    assert own["PDSH_SSH_ARGS_APPEND"].startswith(f"-F {tmp_path}/home/ssh/config -o")
    monkeypatch.setenv("LLM_WIZARD_HOME", str(tmp_path / "with space"))
    with pytest.raises(InputError, match="LLM_WIZARD_HOME"):
        launcher_environment({}, {}, tmp_path)


def test_secrets_are_left_out_and_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".deepspeed_env").write_text("A=b\n")
    said: list[str] = []
    passed = rank_environment(
        {"WANDB_API_KEY": "k" * 40, "A": "b"}, ["eth0", "eth0"], lambda kind, text: said.append(text)
    )
    assert passed == {"A": "b", "NCCL_SOCKET_IFNAME": "=eth0", "GLOO_SOCKET_IFNAME": "eth0"}
    assert "WANDB_API_KEY is not passed" in said[0]
    assert "~/.deepspeed_env is not used" in said[1]
    assert "k" * 40 not in "".join(said)


def test_interfaces_that_differ_are_not_set_for_all_nodes() -> None:
    said: list[str] = []
    assert rank_environment({}, ["eth0", "ib0"], lambda kind, text: said.append(text)) == {}
    assert "eth0, ib0" in said[0]


class Started:
    """A driver on the head that starts two ranks on each of two nodes, and runs of others beside them."""

    def __init__(self, hosts: Any, run: RunDirectory, env: dict[str, str]) -> None:
        self.hosts, self.run = hosts, run
        self.nodes = hosts.nodes[:2]
        run.code.joinpath("stage.py").write_text(RANK)
        stage = {
            "id": "pretrain",
            "argv": argv_of(run),
            "env": {"DS_ACCELERATOR": "cpu"},
            "cwd": str(run.root),
            "derived": {"processes_on_node": 2},
        }
        addresses = {node: hosts.addresses[node] for node in self.nodes}
        ours = {"DS_ACCELERATOR": "cpu", "PYTHONUNBUFFERED": "1", "WANDB_API_KEY": "secret-" * 6, **env}
        write_json(run.root / "asked.json", {"stage": stage, "env": ours, "addresses": addresses})
        # What `pkill -f` of the launcher would end as well: its pattern stands in this command line.
        script = f'exec -a "python -u -m deepspeed.launcher.launch {OTHERS}" sleep 600'
        self.others = [hosts.popen(node, ["bash", "-c", script]) for node in self.nodes]
        self.driver = hosts.popen(hosts.head, [sys.executable, "-c", DRIVER, str(run.root)])

    def wait_for_ranks(self) -> list[dict[str, Any]]:
        paths = [self.run.root / f"rank-{rank}" for rank in range(4)]
        wait_for(lambda: all(path.exists() for path in paths) or self.driver.poll() is not None, 60)
        assert all(path.exists() for path in paths), self.log()
        return [json.loads(path.read_text()) for path in paths]

    def signal_launcher(self, name: str) -> None:
        self.hosts.run(self.hosts.head, ["kill", f"-{name}", (self.run.root / "launcher").read_text()])

    def do(self, name: str) -> None:
        (self.run.root / name).touch()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.run.root / "events").read_text().splitlines()]

    def end(self) -> dict[str, Any]:
        assert self.driver.wait(60) == 0, self.log()
        return self.events()[-1]

    def log(self) -> str:
        return self.run.log("pretrain").read_text()

    def left(self) -> list[int]:
        return [pid for host in (self.hosts.head, *self.nodes) for pid in self.hosts.pids(host, str(self.run.root))]

    def others_live(self) -> bool:
        return all(other.poll() is None for other in self.others)

    def close(self) -> None:
        self.driver.kill()
        for node in self.nodes:  # just what deepspeed's launcher would do
            self.hosts.run(node, ["pkill", "-f", "--", OTHERS], check=False)
        wait_for(lambda: self.left() == [], 60)
        for process in (self.driver, *self.others):
            process.wait(20)


@pytest.fixture
def start(hosts: Any, make_run: MakeRun, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """`start(A="b")`: the launcher at work, its ranks having these variables."""
    started = []

    def begin(**env: str) -> Started:
        run = make_run({"corpus": {"script": str(tmp_path / "none.py")}}, "deepspeed")
        started.append(Started(hosts, run, env))
        return started[-1]

    yield begin
    for one in started:
        one.close()


@pytest.mark.slow
def test_ranks_run_on_all_nodes_with_what_they_were_given_and_no_more(
    start: Callable[..., Started], tmp_path: Path
) -> None:
    started = start(**HOSTILE)
    ranks = started.wait_for_ranks()
    lines = [path.read_bytes().replace(b"\0", b" ") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    started.do("finish")
    assert started.end() == {"kind": "over", "code": 0, "troubles": []}
    assert [rank["host"] for rank in ranks] == [node for node in started.nodes for _ in range(2)]
    for number, rank in enumerate(ranks):
        assert {name: rank["env"].get(name) for name in HOSTILE} == HOSTILE
        assert (rank["env"]["RANK"], rank["env"]["WORLD_SIZE"], rank["env"]["LOCAL_RANK"]) == (
            str(number),
            "4",
            str(number % 2),
        )
        assert rank["env"]["LLM_WIZARD_RUN"] == str(started.run.root)
        assert rank["argv"][1:] == ["pretrain", str(started.run.root)]
        assert "WANDB_API_KEY" not in rank["env"]
    assert not any(b"secret-secret" in line for line in lines)
    assert not list(tmp_path.rglob("X"))
    assert not any((started.hosts.home(host) / ".deepspeed_env").exists() for host in started.hosts.names)
    assert f"{started.nodes[1]}: rank 3 is at work" in started.log()
    assert started.left() == []
    assert started.others_live()


@pytest.mark.slow
def test_a_stop_lets_every_rank_save_and_touches_no_other_run(start: Callable[..., Started]) -> None:
    started = start()
    started.wait_for_ranks()
    time.sleep(2)  # a guard looks for ranks every second
    started.do("stacks")
    wait_for(lambda: all((started.run.root / f"stack-{rank}").exists() for rank in range(4)))
    started.do("stop")
    end = started.end()
    assert (end["code"], end["troubles"]) == (130, [])
    assert all((started.run.root / f"saved-{rank}").exists() for rank in range(4))
    assert started.left() == []
    assert started.others_live()


@pytest.mark.slow
def test_a_rank_that_dies_is_named_and_the_others_end(start: Callable[..., Started]) -> None:
    started = start()
    started.wait_for_ranks()
    time.sleep(2)  # a guard looks for ranks every second
    started.do("die-2")
    end = started.end()
    assert end["code"] == 3
    assert end["troubles"][0] == ["rank", started.nodes[1], 2]
    assert started.left() == []
    assert started.others_live()


@pytest.mark.slow
def test_a_rank_that_is_gone_before_anybody_saw_it_ends_the_others_too(start: Callable[..., Started]) -> None:
    started = start(DIES_AT_ONCE="2")
    end = started.end()
    assert end["code"] == 3
    assert end["troubles"][0][1] == started.nodes[1]
    assert started.left() == []
    assert started.others_live()


@pytest.mark.slow
def test_neither_signals_to_the_launcher_nor_the_supervisors_death_end_another_run(
    start: Callable[..., Started],
) -> None:
    started = start()
    started.wait_for_ranks()
    for name in ("INT", "TERM", "TERM"):
        started.signal_launcher(name)
    time.sleep(2)
    assert started.driver.poll() is None
    started.driver.kill()
    wait_for(lambda: started.left() == [], 60)
    assert started.others_live()
