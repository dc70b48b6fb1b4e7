"""Which nodes are meant: hostfiles, node sets and Slurm's, the good and the hostile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from core.cluster.inventory import MOST, Inventory, expand, inventory_of, read_hostfile, slurm_nodes
from core.errors import InputError


def test_a_hostfile_of_deepspeeds_is_read_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text("# the cluster\nworker-1 slots=8\n\nnode-0.example.org   slots=4  # small\n")
    assert list(read_hostfile(path).items()) == [("worker-1", 8), ("node-0.example.org", 4)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "names no node"),
        ("# nothing\n", "names no node"),
        ("node1\n", "hostfile:1: 'node1' is no node"),
        ("node1 slots=8\nnode1 slots=8\n", "hostfile:2: node1 stands there twice"),
        ("node1 slots=eight\n", "hostfile:1: 'node1 slots=eight' is no node"),
        ("node1 slots=0\n", "hostfile:1: node1 has no slots"),
        (f"node1 slots={'9' * 5000}\n", "is no node"),
        ("-oProxyCommand=touch${IFS}canary slots=8\n", "is no host name"),
        ("node1 slots=8\n$(touch) slots=8\n", "hostfile:2: '$(touch)' is no host name"),
        ("a;touch slots=8\n", "is no host name"),
        ("node[1-2] slots=8\n", "is no host name"),
    ],
)
def test_a_line_that_is_no_node_is_refused_with_its_number(content: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_hostfile(path)
    assert said in str(error.value)


def test_a_hostfile_that_is_not_there_is_an_error_not_a_run_on_this_machine(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        inventory_of("", tmp_path / "none", "auto", {})


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("a,b", ("a", "b")),
        ("z,a", ("z", "a")),
        ("node[001-003]", ("node001", "node002", "node003")),
        ("node[098-101]", ("node098", "node099", "node100", "node101")),
        ("n[1,3-4]-ib, head", ("n1-ib", "n3-ib", "n4-ib", "head")),
        ("n[0-8/4]", ("n0", "n4", "n8")),
        ("rack[1-2]n[1-2]", ("rack1n1", "rack1n2", "rack2n1", "rack2n2")),
        ("node[1-4]!node3", ("node1", "node2", "node4")),
        ("node[1-4]&node[3-9]", ("node3", "node4")),
        ("10.0.0.7,10.0.0.5", ("10.0.0.7", "10.0.0.5")),
    ],
)
def test_ranges_of_nodes_are_expanded_in_the_order_of_their_ranks(text: str, nodes: tuple[str, ...]) -> None:
    assert expand(text) == nodes


def test_128_nodes_and_the_most_that_there_may_be_are_expanded() -> None:
    assert len(expand("node[001-128]")) == 128
    assert len(expand(f"node[1-{MOST}]")) == MOST


HOSTILE = [
    *("", " ", "a,,b", ",a", "a,", "a,a", "n[1-2],n2", "n[3-1]", "n[a-b]", "n[1-99999]", "-o", "-o[1-2]", "a b", "a\nb", "n[1-2"),
    *("n1-2]", "n[[1]]", "n[]", "n[1-2]]", "n[1-]", "n[-2]", "n[1-010]", "a!", "!a", "a!a", "n[1-2]!n[1-2]", "n[1-3]x n[4]"),
    *("n[1-9999]p[1-9999]", "n[1-999999999]", "n[99999999999999999999-99999999999999999999]", "n[0-999999999/999999999]"),
    *("$(touch X)", "n[1-2];touch X", "n[1-2]`touch X`", "n'1'", "n%s", "n%s[1-2]", "n[1-2]%", "ｎ[1-2]", "n[１-２]", "n*", "n?", "n[1-2]*"),
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_list_of_nodes_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        expand(text)


def test_a_range_without_end_is_refused_before_it_is_expanded() -> None:
    with pytest.raises(InputError, match="more than 4096 nodes"):
        expand("n[1-999999999]")


@pytest.mark.parametrize("text", ["@gpu", "@*", "node1,@all", "node[1-4]!@down", "@slurm:part", "n@x[1-2]"])
def test_groups_of_nodes_are_refused_and_no_configuration_of_groups_is_read(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    section = f"map: touch {canary}\nall: touch {canary}\nlist: touch {canary}"
    (tmp_path / "groups.conf").write_text(f"[Main]\ndefault: local\n[local]\n{section}\n")
    monkeypatch.setenv("CLUSTERSHELL_CFGDIR", str(tmp_path))
    with pytest.raises(InputError, match=r"groups of nodes \(@\) are not read"):
        expand(text)
    assert expand("node[1-2]") == ("node1", "node2")
    assert not canary.exists()


def test_settings_of_clustershell_that_are_wrong_are_named(tmp_path: Path) -> None:
    (tmp_path / "defaults.conf").write_text("no section\n")
    script = "from core.cluster.inventory import expand; expand('n[1-2]')"
    environment = {"CLUSTERSHELL_CFGDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "core.errors.InputError: ClusterShell's own settings are wrong" in done.stderr
    assert str(tmp_path) in done.stderr


def test_clustershell_is_imported_only_where_there_is_a_range() -> None:
    script = (
        "import sys; from core.cluster.inventory import expand; expand('a,b'); assert 'ClusterShell' not in sys.modules; "
        "import core.cli, core.doctor.verb; assert 'ClusterShell' not in sys.modules; expand('n[1-2]'); "
        "assert 'ClusterShell' in sys.modules"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", script], env={"PYTHONPATH": root}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- what the cluster section means


JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "node[3-4]"}


@pytest.mark.parametrize("launcher", ["auto", "local"])
def test_nothing_named_is_this_machine(launcher: str) -> None:
    assert inventory_of("", None, launcher, {}) is None


def test_the_job_is_taken_where_no_node_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # without scontrol
    for launcher in ("auto", "slurm", "ssh", "deepspeed"):
        assert inventory_of("", None, launcher, JOB) == Inventory(("node3", "node4"), {}, "Slurm job 77")
    assert inventory_of("", None, "local", JOB) is None
    assert inventory_of("", None, "slurm", {}) is None, "the nodes of a job to come"


def test_named_nodes_come_before_the_jobs_but_must_be_of_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert inventory_of("node4", None, "auto", JOB) == Inventory(("node4",))
    with pytest.raises(InputError, match=r"not in this Slurm job: node5; the job has node3, node4"):
        inventory_of("node[4-5]", None, "auto", JOB)
    assert inventory_of("node[4-5]", None, "ssh", JOB) == Inventory(("node4", "node5"))


def test_the_slots_of_a_hostfile_are_kept_with_their_source(tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text("b slots=8\na slots=4\n")
    assert inventory_of("", path, "deepspeed", {}) == Inventory(("b", "a"), {"b": 8, "a": 4}, f"the hostfile {path}")


@pytest.mark.parametrize("launcher", ["ssh", "deepspeed"])
def test_a_launcher_without_nodes_is_an_error_not_a_run_on_this_machine(launcher: str) -> None:
    with pytest.raises(InputError, match=f"cluster.launcher is {launcher}, and no nodes are named"):
        inventory_of("", None, launcher, {})


# --- Slurm


def scontrol(folder: Path, script: str) -> None:
    program = folder / "scontrol"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


def test_scontrol_is_asked_and_its_order_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, f'echo "$@" > {tmp_path}/asked; printf "z1\\na2\\n"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert slurm_nodes({"SLURM_JOB_NODELIST": "z1,a2"}) == ("z1", "a2")
    assert (tmp_path / "asked").read_text() == "show hostnames z1,a2\n"


@pytest.mark.parametrize("script", ["exit 1", "exec sleep 60", "kill -9 $$"])
def test_a_scontrol_that_fails_is_done_without(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr("core.cluster.inventory.SCONTROL_S", 0.2)
    assert slurm_nodes({"SLURM_JOB_NODELIST": "node[01-03]"}) == ("node01", "node02", "node03")


def test_a_hostile_scontrol_or_environment_names_no_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scontrol(tmp_path, f'touch {tmp_path}/ran; echo "-oProxyCommand=x"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(InputError, match="is no host name"):
        slurm_nodes({"SLURM_JOB_NODELIST": "--config=/tmp/x"})
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError, match="is no host name"):
        slurm_nodes({"SLURM_JOB_NODELIST": "node1"})
