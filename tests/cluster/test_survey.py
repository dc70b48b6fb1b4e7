"""The survey: real node surveys on this machine, nodes that hang, lie or are not there, and what does not fit together."""

from __future__ import annotations

import ast
import json
import os
import pwd
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from core.cluster import node_survey
from core.cluster import survey as survey_module
from core.cluster.inventory import Inventory
from core.cluster.reach import LocalReach
from core.cluster.survey import Answers, NodeFacts, check_even, check_nodes, node_here, read_facts, survey
from core.errors import StageError
from core.facts import Gpu, find_gpus

from .conftest import HEALTHY, FakeGpus

GPU = Gpu("NVIDIA H100 80GB HBM3", 80 << 30)
HERE = 'echo \'{"survey":"here"}\'; '


@dataclass(frozen=True)
class Scripts:
    """Nodes that are shell scripts, by name; a name without one is a real survey of this machine."""

    scripts: dict[str, str] = field(default_factory=dict)
    every: str = ""
    kind: ClassVar[str] = "ssh"

    def argv(self, node: str, command: Sequence[str]) -> list[str]:
        script = self.scripts.get(node, self.every)
        return ["sh", "-c", script, node] if script else list(command)


def ask(tmp_path: Path, nodes: Sequence[str] = ("n1",), reach: Any = None, **options: Any) -> Answers:
    python = options.pop("python", sys.executable)
    return survey(nodes, reach or LocalReach(), python, options.pop("folder", tmp_path), **options)


def answer(**changes: Any) -> dict[str, Any]:
    """A node's answer as it should be."""
    good = {
        **{"survey": "done", "host": "h", "machine": "b:1", "python": "/p", "python_version": "3.11.4", "cores": 4, "memory": 1 << 30},
        **{"gpus": [{"name": GPU.name, "memory": GPU.memory}], "no_gpus": "", "address": "10.0.0.1", "interface": "eth0"},
        **{"no_route": "", "port": 20001, "not_shared": ""},
    }  # fmt: skip
    return {**good, **changes}


def facts(name: str, gpus: int = 8, **changes: Any) -> NodeFacts:
    one = read_facts(name, answer(host=name, machine=f"boot:{name}"))
    assert one is not None
    return replace(one, gpus=(GPU,) * gpus, **changes)


def refusal(nodes: Sequence[NodeFacts], processes: int | None = 8, **inventory: Any) -> str:
    errors = inventory.pop("errors", None)
    names = inventory.pop("named", tuple(one.name for one in nodes))
    with pytest.raises(StageError) as error:
        check_nodes(Inventory(names, **inventory), {one.name: one for one in nodes}, processes, errors)
    return str(error.value)


# --- a real survey


def test_it_is_one_file_for_python_3_8_that_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(node_survey.__file__).read_text(), feature_version=(3, 8))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported <= sys.stdlib_module_names


def test_this_machine_says_what_it_is(tmp_path: Path) -> None:
    answers = ask(tmp_path)
    assert answers.errors == {}
    one = answers.facts["n1"]
    assert (one.name, one.host, one.python) == ("n1", os.uname().nodename, sys.executable)
    assert one.python_version == ".".join(map(str, sys.version_info[:3]))
    assert one.cores == len(os.sched_getaffinity(0))
    assert 0 < one.memory <= psutil.virtual_memory().total
    assert one.gpus == find_gpus()
    assert (one.no_gpus, one.no_route, one.not_shared) == ("", "", "")
    assert node_here(answers.facts) == "n1"
    assert list(tmp_path.iterdir()) == [], "nothing is left in the folder"


def test_the_oldest_python_there_is_answers_too(tmp_path: Path) -> None:
    """Python 3.8 where pyenv has one; else this one."""
    olds = sorted(Path(pwd.getpwuid(os.getuid()).pw_dir, ".pyenv/versions").glob("3.[89].*/bin/python"))
    python = str(olds[0]) if olds else sys.executable
    answers = ask(tmp_path, python=python)
    assert answers.errors == {}
    if olds:
        assert answers.facts["n1"].python_version == olds[0].parts[-3]


def test_its_port_is_free_and_none_that_an_outgoing_connection_is_given(tmp_path: Path) -> None:
    port = ask(tmp_path).facts["n1"].port
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    assert not low <= port <= high
    with socket.socket() as one:
        one.bind(("", port))


def test_the_gpus_of_each_node_are_asked(tmp_path: Path, gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in gpus.env.items():
        monkeypatch.setenv(name, value)
    found = ask(tmp_path).facts["n1"]
    assert found.gpus == (Gpu("NVIDIA H100 80GB HBM3 (fake)", 81920 << 20),) * 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    assert len(ask(tmp_path).facts["n1"].gpus) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert ask(tmp_path).facts["n1"].gpus == ()


def test_a_gpu_that_is_lost_and_a_driver_that_blocks_are_named(
    tmp_path: Path, gpus: FakeGpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in gpus.env.items():
        monkeypatch.setenv(name, value)
    lines = HEALTHY.splitlines(keepends=True)
    gpus.set("".join([*lines[:3], "lost\n", *lines[4:]]))
    lost = ask(tmp_path).facts["n1"]
    assert len(lost.gpus) == 7
    assert lost.no_gpus == "GPU 3 does not answer (GPU 3: GPU is lost (15))"
    source = tmp_path / "node_survey.py"
    source.write_text(Path(node_survey.__file__).read_text().replace("DRIVER_S = 30.0", "DRIVER_S = 1.0"))
    (tmp_path / "agent.py").write_bytes(Path(node_survey.__file__).with_name("agent.py").read_bytes())
    monkeypatch.setattr(node_survey, "__file__", str(source))
    gpus.set("block\n" + HEALTHY)
    blocked = ask(tmp_path).facts["n1"]
    assert (blocked.gpus, blocked.no_gpus) == ((), "the NVIDIA driver did not answer within 1 s")
    assert "n1: the NVIDIA driver did not answer" in refusal([blocked])
    check_nodes(Inventory(("n1",)), {"n1": blocked}, None)


def test_the_interface_asked_for_must_be_there(tmp_path: Path) -> None:
    one = ask(tmp_path, interface="lo").facts["n1"]
    assert (one.address, one.interface, one.no_route) == ("127.0.0.1", "lo", "")
    other = ask(tmp_path, interface="ib7").facts["n1"]
    assert "no interface ib7 with an IPv4 address; there are " in other.no_route
    assert "lo (127.0.0.1)" in other.no_route
    assert "n1 (no interface ib7" in refusal([other], None)


def test_a_folder_that_is_another_one_there_is_found(tmp_path: Path) -> None:
    """The node sees a folder of the same name without the head's note: its own mount namespace has an empty one over it."""
    unshare = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this machine forbids mount namespaces")
    shared = tmp_path / "runs"
    shared.mkdir()

    class Apart(LocalReach):
        def argv(self, node: str, command: Sequence[str]) -> list[str]:
            if node == "near":
                return list(command)
            how = {"empty": f"mount -t tmpfs none {shared}", "gone": f"mount -t tmpfs none {tmp_path}"}
            how["read-only"] = f"mount --bind {shared} {shared} && mount -o remount,bind,ro {shared}"
            return [*unshare, "sh", "-c", f'{how[node]} && exec "$@"', "sh", *command]

    found = ask(tmp_path, ["near", "empty", "gone", "read-only"], Apart(), folder=shared).facts
    assert {name: one.not_shared for name, one in found.items()} == {
        "near": "",
        "empty": "a file that the head writes there is not seen (No such file or directory)",
        "gone": "there is no such folder",
        "read-only": "it cannot be written: Read-only file system",
    }
    text = refusal([replace(one, machine=name) for name, one in found.items()], None)
    assert "the runs folder is not shared with empty (a file" in text
    assert "near" not in text
    assert list(shared.iterdir()) == []


def test_a_folder_that_is_not_made_yet_is_looked_for_above(tmp_path: Path) -> None:
    assert ask(tmp_path, folder=tmp_path / "runs" / "r").facts["n1"].not_shared == ""
    assert list(tmp_path.iterdir()) == []


def test_a_path_with_a_shells_words_in_it_is_a_path(tmp_path: Path) -> None:
    folder = tmp_path / "$(touch X); 'a\" \n ünï"
    folder.mkdir()
    one = ask(tmp_path, folder=folder).facts["n1"]
    assert one.not_shared == ""


# --- nodes that do not answer


def test_words_of_what_connects_are_kept_for_each_node(tmp_path: Path) -> None:
    refused = "echo 'ssh: connect to host n2 port 22: No route to host' >&2; exit 255"
    python = "echo 'sh: 1: /x/python: not found' >&2; exit 127"
    coloured = "printf 'token=hf_%030d \\033[31mno\\n' 7; exit 3"
    nodes = ["n1", "n2", "n3", "n4", "n5", "n6"]
    scripts = {"n2": refused, "n3": python, "n4": coloured, "n5": "kill -9 $$", "n6": "exit 0"}
    answers = ask(tmp_path, nodes, Scripts(scripts))
    assert list(answers.facts) == ["n1"]
    assert answers.errors == {
        "n2": "ssh: connect to host n2 port 22: No route to host",
        "n3": "exit code 127: sh: 1: /x/python: not found",
        "n4": "exit code 3: token=*** no",
        "n5": "killed by SIGKILL",
        "n6": "it ended without an answer",
    }
    text = refusal([], named=tuple(nodes[1:]), errors=answers.errors)
    assert "no answer from n2 (ssh: connect to host n2 port 22: No route to host); n3 (exit code 127" in text


def test_a_python_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert ask(tmp_path, python="/nowhere/python").errors == {
        "n1": "/nowhere/python could not be started: No such file or directory"
    }


def test_a_node_that_hangs_before_or_after_its_first_word_is_named_and_the_others_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(survey_module, "HERE_S", 1.0)
    monkeypatch.setattr(survey_module, "DONE_S", 1.0)
    hangs = {"login": "echo motd; sleep 60", "after": HERE + "sleep 60", "again": f"while :; do {HERE} sleep .2; done"}
    answers = ask(tmp_path, ["login", "after", "again"], Scripts(hangs))
    assert answers.errors == {
        "login": "no answer within 1 s: motd",
        "after": "reached, but silent for 1 s",
        "again": 'reached, but silent for 1 s: {"survey":"here"}',
    }
    assert [child for child in psutil.Process().children(recursive=True) if child.name() in ("sh", "sleep")] == []


def test_a_node_that_prints_without_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "LONGEST", 1 << 16)
    assert ask(tmp_path, ["n1"], Scripts(every="exec cat /dev/zero")).errors == {"n1": "it prints without end"}


def test_words_before_the_answer_are_no_answer(tmp_path: Path) -> None:
    said = json.dumps(answer())
    noise = f"echo '*** Welcome ***'; echo '[1]'; echo null; {HERE} echo '{said}'; echo bye; exit 4"
    answers = ask(tmp_path, ["n1"], Scripts(every=noise))
    assert answers.errors == {}
    assert answers.facts["n1"].interface == "eth0"


def test_128_nodes_are_asked_no_more_than_ten_of_them_opening_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    said = json.dumps(answer())
    script = f"echo + >>{log}; sleep .05; echo - >>{log}; {HERE} echo '{said}'"
    nodes = [f"node{number:03d}" for number in range(128)]
    answers = ask(tmp_path, nodes, Scripts(every=script))
    assert list(answers.facts) == nodes
    opening, most = 0, 0
    for line in log.read_text().split():
        opening += 1 if line == "+" else -1
        most = max(most, opening)
    assert (opening, most) == (0, 10)


def test_nodes_that_are_awake_but_slow_do_not_hold_up_the_next(tmp_path: Path) -> None:
    """Eight GPUs without persistence mode take ten seconds to wake: 128 nodes must not wait for each other's."""
    gate = tmp_path / "gate"
    said = json.dumps(answer())
    script = f"{HERE} echo >>{gate}; while [ $(wc -l <{gate}) -lt 25 ]; do sleep .05; done; echo '{said}'"
    nodes = [f"n{number}" for number in range(25)]
    assert len(ask(tmp_path, nodes, Scripts(every=script)).facts) == 25


def test_an_interrupt_leaves_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(survey_module._Asked, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ask(tmp_path, ["a", "b"], Scripts(every="echo x; exec sleep 60"))
    assert [child for child in psutil.Process().children() if child.name() in ("sh", "sleep")] == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_this_machine_cannot_write_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="/proc cannot be written"):
        ask(tmp_path, folder=Path("/proc/nothing"))


# --- what a node says is not trusted


LIES: dict[str, Any] = {
    "host": [None, 7, "x" * 5000],
    "machine": [None, ["a"]],
    "python": [None, 3],
    "python_version": [None, 3.11, "3.11", "3.11.4; rm", "3.11.4\n"],
    "cores": [None, 0, -1, "4", 4.5, True, 1 << 40],
    "memory": [None, -1, "much", float("inf"), 1 << 63],
    "gpus": [None, {}, [None], [{"name": "x"}], [{"name": 3, "memory": 1}], [{"name": "x", "memory": -1}], [{"name": "x", "memory": 1}] * 999],
    "no_gpus": [None, 1],
    "address": [None, "", "10.0.0", "10.0.0.1; touch X", "::1", "example.org", "-oX", "１0.0.0.1"],
    "interface": [None, "eth0 x", "^eth0", "eth0,ib0", "=eth0", "a" * 16, "-x", "e\nX=1", "eth0:1", "../x"],
    "no_route": [None],
    "port": [None, 0, -1, 65536, "22", True, 22.0],
    "not_shared": [None, False],
}  # fmt: skip


@pytest.mark.parametrize(("name", "lie"), [(name, lie) for name, lies in LIES.items() for lie in lies])
def test_an_answer_with_a_field_that_it_cannot_have_is_none(name: str, lie: Any) -> None:
    assert read_facts("n1", answer()) is not None
    assert read_facts("n1", answer(**{name: lie})) is None
    without = answer()
    del without[name]
    assert read_facts("n1", without) is None


def test_such_an_answer_is_named_as_one(tmp_path: Path) -> None:
    lie = json.dumps(answer(port="22"))
    assert ask(tmp_path, ["n1"], Scripts(every=f"{HERE} echo '{lie}'")).errors == {
        "n1": "it ended without an answer: its answer is not one"
    }


def test_control_characters_of_a_node_reach_no_terminal() -> None:
    one = read_facts(
        "n1", answer(host="h\x1b]0;x\x07\n", no_gpus="\x1b[31mbad\r\nX", gpus=[{"name": "G\x1b[2J", "memory": 1}])
    )
    assert one is not None
    assert (one.host.strip(), one.no_gpus, one.gpus[0].name) == ("h", "bad X", "G")


def test_a_node_without_a_way_has_no_address() -> None:
    assert read_facts("n1", answer(address="", interface="", no_route="no route")) is not None


# --- what does not fit together


def test_nodes_that_fit_pass() -> None:
    nodes = {name: facts(name) for name in ("a", "b")}
    check_nodes(Inventory(("a", "b"), {"a": 8, "b": 8}), nodes, 8)
    check_nodes(Inventory(("a", "b")), nodes, 4)
    check_nodes(Inventory(("a", "b")), {**nodes, "b": facts("b", gpus=0)}, None)


def test_two_names_for_one_machine_are_refused_with_both() -> None:
    text = refusal([facts("a"), facts("b"), facts("c", machine="boot:a", host="a")], source="the hostfile /h")
    assert "a and c are one machine, a" in text
    assert "the hostfile /h must name each machine once" in text


def test_machines_that_do_not_know_who_they_are_are_not_taken_for_one() -> None:
    nodes = {name: facts(name, machine="") for name in ("a", "b")}
    check_nodes(Inventory(("a", "b")), nodes, 8)
    assert node_here(nodes) is None


def test_this_process_is_found_by_its_machine_whatever_its_name_is() -> None:
    own = facts("b", host="elsewhere", machine=node_survey.machine_identity())
    assert node_here({"a": facts("a", host=os.uname().nodename), "b": own}) == "b"
    assert node_here({"a": facts("a", host=os.uname().nodename)}) is None


def test_another_python_is_refused_with_the_nodes_that_have_it() -> None:
    nodes = [facts("a"), facts("b", python_version="3.9.2"), facts("c")]
    assert "/p is another Python on some nodes: b has 3.9.2, the others 3.11" in refusal(nodes)
    check_nodes(Inventory(("a", "c")), {"a": facts("a"), "c": facts("c", python_version="3.11.9")}, 8)


def test_gpus_are_held_against_slots_and_processes() -> None:
    nodes = [facts("a"), facts("b", gpus=4)]
    assert "fewer GPUs than slots in the hostfile h: b has 4, not 8" in refusal(
        nodes, 4, slots={"a": 8, "b": 8}, source="the hostfile h"
    )
    assert "8 processes on each node are more than the slots in the hostfile h: b has 4" in refusal(
        nodes, 8, slots={"a": 8, "b": 4}, source="the hostfile h"
    )
    assert "8 processes on each node need as many GPUs: b has 4" in refusal(nodes, 8)
    assert "need as many GPUs: a has 0" in refusal([facts("a", gpus=0)], 1)


def test_nodes_that_differ_where_nothing_states_a_number_are_refused_by_name() -> None:
    nodes = {one.name: one for one in (facts("a"), facts("b"), facts("c", gpus=4))}
    with pytest.raises(StageError, match="nodes differ in GPUs: c has 4, the others 8") as error:
        check_even(Inventory(("a", "b", "c")), nodes)
    assert "cluster.processes=4" in str(error.value)
    check_even(Inventory(("a", "b")), nodes)
    check_even(Inventory(("b", "c"), {"b": 4, "c": 4}), nodes)
    with pytest.raises(StageError, match="nodes differ in slots in the hostfile: c has 2, the others 4"):
        check_even(Inventory(("a", "b", "c"), {"a": 4, "b": 4, "c": 2}), nodes)


def test_of_many_nodes_that_are_wrong_five_are_named() -> None:
    names = [f"n{number}" for number in range(12)]
    text = refusal([facts(name, not_shared="there is no such folder") for name in names])
    assert "n4 (there is no such folder) and 7 more" in text
    assert "n5" not in text


# --- over the real ssh


ON_HEAD = """
import dataclasses, json, sys
from pathlib import Path
from core.cluster.inventory import inventory_of
from core.cluster.reach import SshReach
from core.cluster.survey import check_nodes, node_here, survey
from core.errors import StageError
asked = json.loads(sys.argv[1])
hostfile = Path(asked["hostfile"]) if asked["hostfile"] else None
inventory = inventory_of(asked["nodes"], hostfile, "ssh", {})
answers = survey(inventory.nodes, SshReach(), asked["python"], Path(asked["folder"]), asked["interface"])
refusal = ""
try:
    check_nodes(inventory, answers.facts, asked["processes"], answers.errors)
except StageError as error:
    refusal = str(error)
facts = {name: dataclasses.asdict(one) for name, one in answers.facts.items()}
print(json.dumps({"facts": facts, "errors": answers.errors, "refusal": refusal, "here": node_here(answers.facts)}))
"""


@dataclass
class Cluster:
    """The hosts, with a training Python that is another one, and GPUs that are others, where a file of the host's name says so."""

    hosts: Any
    folder: Path
    nvml: Path

    def __post_init__(self) -> None:
        self.runs = self.folder / "runs"
        self.runs.mkdir()
        self.python = self.folder / "python"
        self.python.write_text(
            f"#!/bin/sh\nhere={self.folder}/$(uname -n)\npython={sys.executable}\n"
            '[ ! -e "$here.python" ] || python=$(cat "$here.python")\n'
            f'[ ! -e "$here.gpus" ] || export LD_LIBRARY_PATH={self.nvml} FAKE_NVML_FILE="$here.gpus"\n'
            'exec "$python" "$@"\n'
        )
        self.python.chmod(0o755)

    def __call__(self, nodes: str = "", hostfile: str = "", **changes: Any) -> Any:
        asked = {"nodes": nodes, "hostfile": hostfile, "python": str(self.python), "folder": str(self.runs)}
        asked |= {"interface": "", "processes": None} | changes
        done = self.hosts.run(self.hosts.head, [sys.executable, "-c", ON_HEAD, json.dumps(asked)])
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def gpus(self, node: str, count: int) -> None:
        (self.folder / f"{node}.gpus").write_text("".join(HEALTHY.splitlines(keepends=True)[:count]))


@pytest.fixture
def cluster(hosts: Any, tmp_path: Path, nvml_folder: Path) -> Cluster:
    return Cluster(hosts, tmp_path, nvml_folder)


def test_hosts_say_over_ssh_by_which_interface_their_peers_reach_them(cluster: Cluster) -> None:
    found = cluster("lwnode[1-4]")
    assert (found["errors"], found["refusal"], found["here"]) == ({}, "", None)
    facts = found["facts"]
    assert {name: (one["host"], one["address"], one["interface"]) for name, one in facts.items()} == {
        f"lwnode{number}": (f"lwnode{number}", f"10.77.0.1{number}", "eth0") for number in range(1, 5)
    }
    assert len({one["machine"] for one in facts.values()}) == 4
    assert cluster("lwnode1,lwhead")["here"] == "lwhead", "the head may be a node"
    assert "lwnode1 (no interface ib0 with" in cluster("lwnode[1-2]", interface="ib0")["refusal"]
    assert list(cluster.runs.iterdir()) == []


def test_two_names_for_one_host_are_refused_with_both(cluster: Cluster) -> None:
    found = cluster("lwnode1,lwnode2,10.77.0.11")
    assert "lwnode1 and 10.77.0.11 are one machine, lwnode1" in found["refusal"]


def test_a_host_that_is_down_is_refused_with_its_name_and_the_words_of_ssh(cluster: Cluster) -> None:
    cluster.hosts.kill_node("lwnode3")
    try:
        found = cluster("lwnode[1-4]")
    finally:
        cluster.hosts.revive("lwnode3")
    words = "ssh: connect to host lwnode3 port 22: Connection refused"
    assert found["errors"] == {"lwnode3": words}
    assert list(found["facts"]) == ["lwnode1", "lwnode2", "lwnode4"]
    assert f"no answer from lwnode3 ({words})" in found["refusal"]


def test_slots_of_a_hostfile_are_held_against_the_gpus_of_each_host(cluster: Cluster) -> None:
    for node in ("lwnode1", "lwnode2"):
        cluster.gpus(node, 8)
    hostfile = cluster.folder / "hostfile"
    hostfile.write_text("lwnode1 slots=8\nlwnode2 slots=8\n")
    found = cluster(hostfile=str(hostfile), processes=8)
    assert found["refusal"] == ""
    assert [len(one["gpus"]) for one in found["facts"].values()] == [8, 8]
    cluster.gpus("lwnode2", 4)
    refusal = cluster(hostfile=str(hostfile), processes=8)["refusal"]
    assert f"fewer GPUs than slots in the hostfile {hostfile}: lwnode2 has 4, not 8" in refusal


def test_a_folder_that_a_host_does_not_share_is_named_with_the_host(cluster: Cluster) -> None:
    cluster.hosts.run("lwnode2", ["mount", "-t", "tmpfs", "none", str(cluster.runs)])
    try:
        found = cluster("lwnode[1-3]")
    finally:
        cluster.hosts.run("lwnode2", ["umount", str(cluster.runs)])
    assert "the runs folder is not shared with lwnode2 (a file that the head writes" in found["refusal"]
    assert "lwnode1" not in found["refusal"]


def test_another_python_and_one_that_is_not_there_are_named_with_the_host(cluster: Cluster) -> None:
    (cluster.folder / "lwnode2.python").write_text("/nowhere/python")
    errors = cluster("lwnode[1-3]")["errors"]
    assert list(errors) == ["lwnode2"]
    assert "/nowhere/python: not found" in errors["lwnode2"]
    versions = Path(pwd.getpwuid(os.getuid()).pw_dir, ".pyenv/versions")
    own = ".".join(map(str, sys.version_info[:2]))
    others = [one for one in sorted(versions.glob("3.[89].*/bin/python")) if not one.parts[-3].startswith(f"{own}.")]
    if not others:
        pytest.skip("there is one Python here")
    (cluster.folder / "lwnode2.python").write_text(str(others[0]))
    refusal = cluster("lwnode[1-3]")["refusal"]
    assert f"another Python on some nodes: lwnode2 has {others[0].parts[-3]}, the others {own}" in refusal


IN_JOB = """
import json, os, sys
from pathlib import Path
from core.cluster.inventory import inventory_of
from core.cluster.reach import reach_of
from core.cluster.survey import check_nodes, survey
inventory = inventory_of("", None, "auto", os.environ)
answers = survey(inventory.nodes, reach_of("slurm", os.environ), sys.executable, Path(sys.argv[1]))
check_nodes(inventory, answers.facts, None, answers.errors)
print(json.dumps([inventory.source, list(inventory.nodes), [one.host for one in answers.facts.values()]]))
"""


def test_the_nodes_of_a_slurm_job_are_found_and_asked_by_srun(slurm_hosts: Any, tmp_path: Path) -> None:
    wanted = ["salloc", "--quiet", "--nodelist=lwnode[2-4]", "--nodes=3"]
    done = slurm_hosts.run(slurm_hosts.head, [*wanted, sys.executable, "-c", IN_JOB, str(tmp_path)])
    assert done.returncode == 0, done.stderr
    source, nodes, names = json.loads(done.stdout)
    assert source.startswith("Slurm job ")
    assert nodes == names == ["lwnode2", "lwnode3", "lwnode4"]
