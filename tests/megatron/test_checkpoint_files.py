"""Only complete checkpoints are gone on from, both pointers name the newest of them, and nothing is deleted."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from core.megatron.checkpoint_files import FileLayout, is_whole, layout_of, mend, newest_complete, what_is_wrong

LAYOUT = FileLayout(layers=2)


def save(folder: Path, step: int, names: set[str] | None = None) -> Path:
    target = folder / f"global_step{step}"
    target.mkdir()
    for name in LAYOUT.required() if names is None else names:
        with zipfile.ZipFile(target / name, "w") as file:
            file.writestr("archive/data.pkl", b"x" * 100)
    return target


def point(folder: Path, step: int, tracked: int | None = None) -> None:
    (folder / "latest").write_text(f"global_step{step}")
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step if tracked is None else tracked))


def pointers(folder: Path) -> tuple[str, str]:
    return (folder / "latest").read_text(), (folder / "latest_checkpointed_iteration.txt").read_text()


@pytest.mark.parametrize(
    ("argv", "processes", "wanted"),
    [
        ([], 1, {"layer_04-model_00-model_states.pt", "mp_rank_00_model_states.pt"}),
        (["--tensor-model-parallel-size", "2"], 2, {"layer_04-model_01-model_states.pt", "mp_rank_01_model_states.pt"}),
        (["--pipeline-model-parallel-size", "2"], 2, {"mp_rank_01_model_states.pt"}),
        (["--zero-stage", "1"], 2, {"zero_pp_rank_1_mp_rank_00_optim_states.pt"}),
        (["--bf16"], 2, {"zero_pp_rank_1_mp_rank_00_optim_states.pt"}),
        (["--untie-embeddings-and-output-weights"], 1, {"layer_05-model_00-model_states.pt"}),
    ],
)
def test_what_belongs_to_a_checkpoint_follows_from_the_command(
    argv: list[str], processes: int, wanted: set[str]
) -> None:
    layout = layout_of(["python", "x.py", "--num-layers", "2", "--zero-stage", "0", *argv], processes)
    missing = layout.missing([])
    assert wanted <= set(missing)
    assert not layout.missing(missing)
    for name in wanted:
        assert layout.missing(set(missing) - {name}) == [name]
    in_bf16 = {f"bf16_{name}" if name.startswith("zero") else name for name in missing}
    assert not layout.missing(in_bf16)


def test_without_the_pipeline_engine_there_are_no_layer_files() -> None:
    layout = layout_of(["x.py", "--num-layers", "2", "--zero-stage", "0", "--no-pipeline-parallel"], 2)
    assert layout.required() == {"mp_rank_00_model_states.pt"}


def test_a_file_that_was_not_written_to_its_end_is_seen(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    assert what_is_wrong(folder, LAYOUT) == ""
    file = folder / "layer_02-model_00-model_states.pt"
    data = file.read_bytes()
    for length in (0, 1, 50, len(data) - 1):
        file.write_bytes(data[:length])
        assert not is_whole(file)
    assert file.name in what_is_wrong(folder, LAYOUT)
    file.unlink()
    assert f"{file.name} is missing" in what_is_wrong(folder, LAYOUT)


def test_pointers_that_agree_with_what_is_there_are_left_alone(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    point(tmp_path, 20)
    said: list[str] = []
    assert mend(tmp_path, LAYOUT, said.append) == 20
    assert said == []


def test_half_a_newest_checkpoint_is_put_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    save(tmp_path, 10)
    half = save(tmp_path, 20, {"layer_01-model_00-model_states.pt"})
    point(tmp_path, 20, tracked=10)
    said: list[str] = []
    assert newest_complete(tmp_path, LAYOUT) == 10
    assert mend(tmp_path, LAYOUT, said.append) == 10
    assert pointers(tmp_path) == ("global_step10", "10")
    assert not half.exists()
    (aside,) = tmp_path.glob("global_step20.incomplete-*")
    assert (aside / "layer_01-model_00-model_states.pt").is_file()
    assert len(said) == 2


def test_a_complete_checkpoint_that_was_not_yet_pointed_to_is_used(tmp_path: Path) -> None:
    save(tmp_path, 10)
    save(tmp_path, 20)
    point(tmp_path, 10)
    assert mend(tmp_path, LAYOUT, lambda text: None) == 20
    assert pointers(tmp_path) == ("global_step20", "20")


def test_pointers_to_nothing_are_put_aside(tmp_path: Path) -> None:
    point(tmp_path, 10)
    said: list[str] = []
    assert mend(tmp_path, LAYOUT, said.append) is None
    assert not (tmp_path / "latest").exists()
    assert len(list(tmp_path.glob("latest*.stale-*"))) == 2
    assert mend(tmp_path / "not made", LAYOUT, said.append) is None
