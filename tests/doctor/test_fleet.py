"""Many nodes over ssh. The ssh on PATH is a small script that answers with recorded probes, or runs the real one here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doctor.observations import NEEDS, PASSES

from conftest import wizard
from core.doctor.checks import BY_ID, CHECKS
from core.doctor.fleet import SSH_OPTIONS, examine_fleet, offset_of, ssh_argv
from core.doctor.fold import fold, nodes_text
from core.doctor.text import report_text

RECORDED = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
case $2 in
  hang*) exec sleep 1000 ;;
  denied*) echo "$2: Permission denied (publickey)." >&2; exit 255 ;;
  *) cat "$FLEET/$2" ;;
esac
"""
REAL = """#!/bin/sh
while [ "$1" != "--" ]; do shift; done
shift 2
exec sh -c "$*"
"""


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ssh(script)`: from now on this is the ssh on PATH."""

    def install(script: str) -> Path:
        path = tmp_path / "bin" / "ssh"
        path.parent.mkdir()
        path.write_text(script)
        path.chmod(0o755)
        monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
        return path.parent

    return install


def record(folder: Path, nodes: list[str], odd: dict[str, dict[str, dict[str, Any]]]) -> None:
    """One file a node: what its probe prints."""
    folder.mkdir()
    for number, node in enumerate(nodes):
        values = {
            BY_ID[name].observation: value for name, value in PASSES.items() if name not in ("net.gloo", "net.nccl")
        }
        values.pop("clock.skew")  # a recorded time is an old one
        values["ssh.same_host"] = PASSES["ssh.same_host"] | {"boot": f"b{number}", "addresses": [f"10.0.1.{number}"]}
        values["net.hostname"] = {"host": node, "own": f"10.0.1.{number}", "peers": {name: name for name in nodes}}
        values |= odd.get(node, {})
        values.pop("ssh.batch")
        (folder / node).write_text("\n".join(json.dumps({"id": n, "value": v}) for n, v in values.items()) + "\n")


def test_a_fleet_of_128_is_judged_folded_and_not_held_up_by_three_that_hang(
    tmp_path: Path, ssh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.doctor.fleet.SILENT_S", 2.0)
    ssh(RECORDED)
    monkeypatch.setenv("FLEET", str(tmp_path / "fleet"))
    nodes = [f"node-{number:03d}" for number in range(1, 126)]
    stack = PASSES["fleet.equal"]
    odd = {
        "node-007": {"fleet.equal": stack | {"stack": stack["stack"] | {"torch": "2.1.2"}}},
        "node-042": {"limits": PASSES["limits"] | {"open_files": 1024}},
    }
    record(tmp_path / "fleet", nodes, odd)
    needs = replace(NEEDS, nodes=(*nodes, "hang1", "hang2", "hang3"), folder=str(tmp_path))
    checks = [check for check in CHECKS if check.tier == "quick" and check.scope != "head" and check.id != "clock.skew"]
    findings = list(examine_fleet(needs, checks))
    bad = {(finding.id, finding.node): finding for finding in findings if finding.status in ("fail", "warn")}
    assert set(bad) == {("fleet.equal", "node-007"), ("limits", "node-042")}
    limit = bad["limits", "node-042"].fix
    assert limit is not None
    assert not limit.runnable  # --fix mends this machine; what mends another is typed there
    assert "+ulimit -n 4096" in limit.preview
    assert "torch: 124 nodes 2.2.0; node-007 2.1.2" in bad["fleet.equal", "node-007"].verdict.found
    unknown = {finding.node for finding in findings if finding.status == "unknown"}
    assert unknown == {"hang1", "hang2", "hang3"}
    text = report_text(findings)
    assert text.count("hang1") == 1  # a node that is silent is said once
    assert "no answer within 2 s" in text
    assert len(text.splitlines()) < 30
    assert "sleep 1000" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def test_no_more_than_ten_connections_are_open_at_once(
    tmp_path: Path, ssh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = tmp_path / "counts"
    script = f"#!/bin/sh\ntouch {tmp_path}/open-$$\nls {tmp_path} | grep -c open- >> {counts}\nsleep 0.2\nrm {tmp_path}/open-$$\n"
    ssh(script)
    needs = replace(NEEDS, nodes=tuple(f"n{number}" for number in range(25)), folder=str(tmp_path / "none"))
    list(examine_fleet(needs, [BY_ID["limits"]]))
    seen = [int(line) for line in counts.read_text().split()]
    assert len(seen) == 25
    assert max(seen) <= 10


def test_the_real_probe_answers_through_ssh_and_one_machine_under_two_names_is_found(tmp_path: Path, ssh: Any) -> None:
    ssh(REAL)
    needs = replace(NEEDS, python=sys.executable, nodes=("one", "two"), folder=str(tmp_path))
    names = ("ssh.batch", "ssh.same_host", "fs.shared", "clock.skew", "limits", "python.env")
    findings = list(examine_fleet(needs, [BY_ID[name] for name in names]))
    statuses = {(finding.id, finding.node): finding.status for finding in findings}
    assert statuses["ssh.same_host", "all"] == "fail"
    assert statuses["fs.shared", "all"] == "pass"
    assert statuses["clock.skew", "all"] == "pass"
    assert statuses["python.env", "all"] == "pass"
    assert statuses["ssh.batch", "one"] == statuses["ssh.batch", "two"] == "pass"
    assert not list(tmp_path.glob(".llm-wizard-*"))


def test_a_node_without_the_training_python_is_looked_at_by_its_own(tmp_path: Path, ssh: Any) -> None:
    ssh(REAL)
    needs = replace(NEEDS, python="/gone/bin/python", nodes=("one", "two"), folder=str(tmp_path))
    findings = list(examine_fleet(needs, [BY_ID["python.env"], BY_ID["limits"], BY_ID["python.encoding"]]))
    found = {(finding.id, finding.node): finding for finding in findings}
    assert found["python.env", "one"].status == "fail"
    assert "/gone/bin/python" in found["python.env", "one"].verdict.found
    assert found["limits", "two"].status in ("pass", "fail", "warn")
    assert found["python.encoding", "one"].status == "unknown"


def test_a_node_that_refuses_is_a_failure_and_the_others_are_judged(
    tmp_path: Path, ssh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ssh(RECORDED)
    record(tmp_path / "fleet", ["good1", "good2"], {})
    env = {"FLEET": str(tmp_path / "fleet"), "PATH": f"{folder}:{os.environ['PATH']}"}
    only = ("--only", "ssh.batch,limits,fleet.equal")
    done = wizard("doctor", "--nodes", "good[1-2],denied1", *only, "--json", cwd=tmp_path, **env)
    assert done.returncode == 2, done.stderr
    found = {(f["id"], f["node"]): f for f in json.loads(done.stdout)["findings"]}
    assert found["ssh.batch", "denied1"]["status"] == "fail"
    assert "ssh-copy-id denied1" in found["ssh.batch", "denied1"]["fix"]["preview"]
    assert found["limits", "denied1"]["status"] == "unknown"
    assert found["fleet.equal", "all"]["status"] == "pass"


MEETS = r"""#!/bin/sh
while [ "$1" != "--" ]; do shift; done
ok=true
case $2 in n4) ok=false ;; esac
case $3 in *'"world": 4'*) ok=false ;; *'"address": "n3"'*) ok=false ;; esac
echo '{"id": "python.env", "value": {}}'
printf '{"id": "net.gloo", "value": {"asked": true, "ok": %s, "gb_per_s": 1, "error": "OSError: libgloo"}}\n' $ok
"""
"""Four nodes, of which the fourth can meet nobody: what each says of its group. (Real ones meet in test_real_hosts.py.)"""


def test_the_node_that_an_all_reduce_fails_on_is_named_by_pairs(tmp_path: Path, ssh: Any) -> None:
    """n3 failed with n4 first, and then met another."""
    ssh(MEETS)
    needs = replace(NEEDS, nodes=("n1", "n2", "n3", "n4"), folder=str(tmp_path))
    (finding,) = examine_fleet(needs, [BY_ID["net.gloo"]])
    assert (finding.node, finding.status) == ("n4", "fail"), finding.verdict
    assert "libgloo" in finding.verdict.found


def test_hostile_words_stay_words_in_the_command() -> None:
    evil = "$(touch canary); `touch canary`\n'\""
    needs = replace(NEEDS, python=f"/opt/{evil}/python", nodes=("n1",))
    argv = ssh_argv("n1", needs, {"folder": evil, "observations": []})
    assert argv[argv.index("--") + 1] == "n1"
    assert len(argv) == argv.index("--") + 3
    words = subprocess.run(["sh", "-c", f"set -- {argv[-1]}; printf '%s\\0' \"$@\""], capture_output=True, text=True)
    assert words.stdout.split("\0")[3] == needs.python


def test_ssh_asks_nothing_and_learns_nothing() -> None:
    assert SSH_OPTIONS["BatchMode"] == "yes"
    assert SSH_OPTIONS["StrictHostKeyChecking"] == "yes"
    assert SSH_OPTIONS["UpdateHostKeys"] == "no"
    assert SSH_OPTIONS["ForwardAgent"] == "no"


@pytest.mark.parametrize(("there", "offset"), [(100.0, 0.0), (105.0, 0.0), (110.0, 0.0), (140.0, 30.0), (70.0, -30.0)])
def test_a_clock_is_off_only_where_it_cannot_be_otherwise(there: float, offset: float) -> None:
    """Sent at 100 s, answered at 110 s: any clock in between may be right."""
    assert offset_of(there, 100.0, 110.0) == offset


def test_values_are_folded() -> None:
    values = {f"n{number}": "2.2.0" for number in range(6)} | {"node-007": "2.1.2"}
    assert fold(values) == "6 nodes 2.2.0; node-007 2.1.2"
    assert nodes_text([f"n{number}" for number in range(11)]).endswith("n7 and 3 more")
