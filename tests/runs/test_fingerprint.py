"""A finished stage is known again by settings, inputs and the stages before it."""

from __future__ import annotations

from pathlib import Path

from core.runs.fingerprint import fingerprint, made_paths


def stage(tmp_path: Path, **changes: object) -> dict[str, object]:
    return {"id": "data", "settings": {"a": 1}, "inputs": {"text": [str(tmp_path / "t")]}, "outputs": {}, **changes}


def test_the_same_content_gives_the_same_fingerprint_wherever_its_date(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("x")
    first = fingerprint(stage(tmp_path), {})
    (tmp_path / "t").write_text("x")
    assert fingerprint(stage(tmp_path), {}) == first


def test_other_content_settings_or_makers_give_another(tmp_path: Path) -> None:
    seen = {fingerprint(stage(tmp_path), {})}  # missing
    (tmp_path / "t").write_text("x")
    seen.add(fingerprint(stage(tmp_path), {}))
    (tmp_path / "t").write_text("y")
    seen.add(fingerprint(stage(tmp_path), {}))
    seen.add(fingerprint(stage(tmp_path, settings={"a": 2}), {}))
    seen.add(fingerprint(stage(tmp_path), {str(tmp_path / "t"): "maker 1"}))
    seen.add(fingerprint(stage(tmp_path), {str(tmp_path / "t"): "maker 2"}))
    assert len(seen) == 6


def test_a_folder_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "a").write_text("1")
    first = fingerprint(stage(tmp_path), {})
    (tmp_path / "t" / "b").write_text("1")
    assert fingerprint(stage(tmp_path), {}) != first


def test_outputs_are_known_by_their_maker(tmp_path: Path) -> None:
    made = made_paths(
        [stage(tmp_path, outputs={"bin": "/x"}), stage(tmp_path, id="other", outputs={"o": "/y"})], {"data": "f"}
    )
    assert made == {"/x": "f"}
