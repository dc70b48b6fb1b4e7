"""The commit protocol and its check, without torch: what counts as a checkpoint, and what never does."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from core.train.checkpoint import (
    MANIFEST,
    POINTER,
    InvalidCheckpointError,
    commit,
    latest_verified,
    remove_leftovers,
    remove_old,
    step_folders,
    verify,
)

FILES = ["model.safetensors", "optimizer.safetensors", "deepspeed/rank-0.pt", "trainer.json", "empty"]


def save(folder: Path, step: int, attempt: int = 1) -> Path:
    """Commit a checkpoint of a few small files."""

    def write(target: Path) -> None:
        content = random.Random(step)
        for name in FILES:
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).write_bytes(b"" if name == "empty" else content.randbytes(3000))

    return commit(folder, step, attempt, write, {"world_size": 1, "config_hash": "c", "data_position": 8 * step})


def test_a_committed_folder_verifies_and_says_what_it_belongs_to(tmp_path: Path) -> None:
    found = verify(save(tmp_path, 7, attempt=3))
    assert (found.path, found.step) == (tmp_path / "step-7", 7)
    assert found.manifest["attempt"] == 3
    assert found.manifest["data_position"] == 56
    assert [entry["name"] for entry in found.manifest["files"]] == sorted(FILES)
    assert (tmp_path / POINTER).read_text() == "step-7\n"
    assert {path.name for path in tmp_path.iterdir()} == {"step-7", POINTER}


@pytest.mark.parametrize("name", [*FILES[:-1], MANIFEST])
@pytest.mark.parametrize("seed", range(20))
def test_every_truncation_and_every_flipped_bit_is_detected(tmp_path: Path, name: str, seed: int) -> None:
    folder = save(tmp_path, 1)
    content, chance = (folder / name).read_bytes(), random.Random(seed)
    (folder / name).write_bytes(content[: chance.randrange(len(content))])
    with pytest.raises(InvalidCheckpointError):
        verify(folder)
    flipped = bytearray(content)
    flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    (folder / name).write_bytes(flipped)
    with pytest.raises(InvalidCheckpointError):
        verify(folder)
    (folder / name).write_bytes(content)
    verify(folder)


def missing(folder: Path) -> None:
    (folder / "deepspeed" / "rank-0.pt").unlink()


def added(folder: Path) -> None:
    (folder / "deepspeed" / "rank-1.pt").write_bytes(b"a pickle from elsewhere")


def linked(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    (folder / "trainer.json").rename(elsewhere)
    (folder / "trainer.json").symlink_to(elsewhere)


def from_another_step(folder: Path) -> None:
    other = folder.parent / "other"
    other.mkdir()
    shutil.copy(save(other, 99) / "model.safetensors", folder / "model.safetensors")


def renamed(folder: Path) -> None:
    copy = folder.with_name("step-99")
    folder.rename(copy)
    shutil.copytree(copy, folder)
    document = orjson.loads((copy / MANIFEST).read_bytes())
    (folder / MANIFEST).write_bytes(orjson.dumps(document | {"step": 99}))
    shutil.rmtree(copy)


def without_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def with_a_manifest_of_nonsense(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"[1, 2]")


@pytest.mark.parametrize(
    "damage",
    [missing, added, linked, from_another_step, renamed, without_manifest, with_a_manifest_of_nonsense],
    ids=lambda damage: damage.__name__,
)
def test_a_folder_is_passed_over_when_it_is_damaged(tmp_path: Path, damage: object) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2))  # type: ignore[operator]
    warnings: list[str] = []
    found = latest_verified(tmp_path, warnings.append)
    assert found is not None
    assert found.step == 1
    assert len(warnings) == 1
    assert "step-2" in warnings[0]
    assert "not used" in warnings[0]


def test_unfinished_folders_are_never_offered_and_are_cleared_away(tmp_path: Path) -> None:
    save(tmp_path, 1)
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-2.tmp-1")
    shutil.copytree(tmp_path / "step-1", tmp_path / "step-0.removed")
    assert [path.name for path in step_folders(tmp_path)] == ["step-1"]
    with pytest.raises(InvalidCheckpointError):
        verify(tmp_path / "step-2.tmp-1")
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step-1", POINTER}


@pytest.mark.parametrize(
    "content", [b"", b"step-9", b"../../etc", b"\xff\xfe\x00garbage", b"step-1.tmp-1", b"x" * 100_000]
)
def test_a_pointer_of_garbage_is_named_and_the_newest_checkpoint_used(tmp_path: Path, content: bytes) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    (tmp_path / POINTER).write_bytes(content)
    warnings: list[str] = []
    assert latest_verified(tmp_path, warnings.append).step == 2  # type: ignore[union-attr]
    assert len(warnings) == 1
    assert "the pointer" in warnings[0]


def test_a_missing_pointer_is_named_and_the_newest_checkpoint_used(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / POINTER).unlink()
    warnings: list[str] = []
    assert latest_verified(tmp_path, warnings.append).step == 1  # type: ignore[union-attr]
    assert "is missing" in warnings[0]


def test_steps_are_ordered_as_numbers(tmp_path: Path) -> None:
    for step in (9, 100, 20):
        save(tmp_path, step)
    assert [path.name for path in step_folders(tmp_path)] == ["step-100", "step-20", "step-9"]
    assert latest_verified(tmp_path).step == 100  # type: ignore[union-attr]


def test_an_empty_or_absent_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert latest_verified(tmp_path) is None
    assert latest_verified(tmp_path / "absent") is None


def test_old_checkpoints_are_removed_only_behind_enough_that_verify(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    missing(tmp_path / "step-4")
    assert [path.name for path in remove_old(tmp_path, keep=2)] == ["step-1"]
    assert [path.name for path in step_folders(tmp_path)] == ["step-4", "step-3", "step-2"]
    missing(tmp_path / "step-3")
    assert remove_old(tmp_path, keep=2) == []


def test_a_step_that_exists_is_never_overwritten(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(OSError, match="not empty"):
        save(tmp_path, 1, attempt=2)
    verify(tmp_path / "step-1")


def test_checkpoints_are_private(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        folder = save(tmp_path, 1)
    finally:
        os.umask(before)
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_other_parts_can_check_a_checkpoint_without_importing_torch() -> None:
    code = (
        "import sys, core.train.checkpoint; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
