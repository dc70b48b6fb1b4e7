"""Hostfiles and node lists, the good and the hostile."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.doctor.nodes import expand, read_hostfile
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
        ("node1 slots=eight\n", "is no node"),
        ("-oProxyCommand=touch${IFS}canary slots=8\n", "is no host name"),
        ("$(touch) slots=8\n", "is no host name"),
        ("a;touch slots=8\n", "is no host name"),
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
        read_hostfile(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("a,b", ("a", "b")),
        ("node[001-003]", ("node001", "node002", "node003")),
        ("n[1,3-4]-ib, head", ("n1-ib", "n3-ib", "n4-ib", "head")),
    ],
)
def test_ranges_of_nodes_are_expanded(text: str, nodes: tuple[str, ...]) -> None:
    assert expand(text) == nodes


@pytest.mark.parametrize("text", ["", "a,,b", "a,a", "n[3-1]", "n[a-b]", "n[1-99999]", "-o", "a b", "a\nb", "n[1-2"])
def test_what_is_no_list_of_nodes_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        expand(text)
