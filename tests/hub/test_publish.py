"""Publishing, as real stage processes: the check, the folder, its manifest, and a Hub on loopback that keeps what it gets."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, Repo
from forked_stage import fork_stage
from tiny_model import make_model_folder

from conftest import MakeRun, RunStage
from core.files import read_json
from core.runs.directory import RunDirectory

TOKEN = "hf_" + "CanaryCanaryCanaryCanaryCanary1234"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(TOKEN) as running:
        yield running


def upload_preset(model: Path, **section: Any) -> dict[str, Any]:
    return {"upload_pretrained": {"model": str(model), "test_prompt": "Once upon a time,", **section}}


def hub_env(hub: FakeHub, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    env = {"HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "0"}
    return env | ({"HF_TOKEN": token} if token else {})


def manifest_of(run: RunDirectory, stage: str = "upload-pretrained") -> dict[str, str]:
    files = read_json(run.stage(stage) / "upload-manifest.json")["files"]
    return {entry["name"]: entry["sha256"] for entry in files}


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def everything_in(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())


def publish(run: RunDirectory, stage_id: str) -> subprocess.CompletedProcess[str]:
    """The stage in a process forked from one with the imports done; nothing here speaks to a Hub."""
    stage = fork_stage(run, stage_id)
    return subprocess.CompletedProcess([], stage.wait(), stage.output)


# --- the local folder


def test_the_folder_has_exactly_the_files_of_an_upload(model: Path, tmp_path: Path, make_run: MakeRun) -> None:
    source = shutil.copytree(model, tmp_path / "source")
    for extra in ("optimizer.pt", ".env", "training_args.bin", "trainer_state.json"):
        (source / extra).write_text("x")
    run = make_run(upload_preset(source))
    done = publish(run, "upload-pretrained")
    assert done.returncode == 0, done.stdout
    folder = run.upload("upload-pretrained")
    assert set(hashes(folder)) == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert hashes(folder) == manifest_of(run)
    assert "left out: .env, optimizer.pt, trainer_state.json, training_args.bin" in done.stdout
    assert os.stat(folder / "model.safetensors").st_ino == os.stat(source / "model.safetensors").st_ino


def test_the_published_folder_loads_and_the_card_says_what_it_is(model: Path, make_run: MakeRun) -> None:
    run = make_run(upload_preset(model, license="apache-2.0", languages=["en", "ja"]))
    assert publish(run, "upload-pretrained").returncode == 0
    card = (run.upload("upload-pretrained") / "README.md").read_text()
    import yaml

    assert yaml.safe_load(card.split("---")[1]) == {
        "license": "apache-2.0",
        "language": ["en", "ja"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["llm-wizard", "llama", "pretrained"],
    }
    assert "| Layers | 2 |" in card
    assert "AutoModelForCausalLM.from_pretrained" in card
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(run.upload("upload-pretrained"))
    assert f"| Parameters | {loaded.num_parameters():,} |" in card


def test_the_card_is_written_from_the_runs_record_and_names_no_path_host_or_user(
    model: Path, tmp_path: Path, make_run: MakeRun
) -> None:
    run = make_run({"corpus": {"files": [str(tmp_path / "secret-project.jsonl")]}, "pretrain": {"steps": 7}})
    shutil.copytree(model, run.pretrained)
    metrics = {"loss": 1.23456, "bits_per_byte": 0.98, "from": f"{tmp_path}/x", "who": "me@host"}
    record = {"outputs": {"checkpoints": str(run.checkpoints)}, "metrics": metrics}
    run.result("pretrain").write_text(json.dumps(record))
    assert publish(run, "upload-pretrained").returncode == 0
    card = (run.upload("upload-pretrained") / "README.md").read_text()
    assert "| loss | 1.2346 |" in card
    assert "| bits per byte | 0.98 |" in card
    assert "| steps | 7 |" in card
    assert "| transformers | " in card
    for private in (str(tmp_path), "secret-project", "me@host", f"{Path.home()}/"):
        assert private not in card


def test_the_chat_model_is_asked_in_its_format_and_the_card_shows_it(model: Path, make_run: MakeRun) -> None:
    run = make_run({"upload_finetuned": {"model": str(model), "test_prompt": "What does the function do?"}})
    done = publish(run, "upload-finetuned")
    assert done.returncode == 0, done.stdout
    card = (run.upload("upload-finetuned") / "README.md").read_text()
    assert "### Human: What does the function do?\n### Assistant:" in card
    assert "apply_chat_template" in card


def test_a_model_that_adds_nothing_is_not_published(model: Path, tmp_path: Path, make_run: MakeRun) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    silent = shutil.copytree(model, tmp_path / "silent")
    made = AutoModelForCausalLM.from_pretrained(silent)
    with torch.no_grad():  # every logit 0: greedy decoding takes id 0, which is made an end token
        made.model.norm.weight.zero_()
    made.generation_config.eos_token_id = [0]
    made.save_pretrained(silent)
    run = make_run(upload_preset(silent))
    failed = publish(run, "upload-pretrained")
    assert failed.returncode == 2
    assert "error: nothing was published: the generated text" in failed.stdout
    assert not run.upload("upload-pretrained").exists()
    assert not run.result("upload-pretrained").exists()


def test_an_interrupted_upload_leaves_nothing_that_a_second_start_trips_over(model: Path, make_run: MakeRun) -> None:
    run = make_run(upload_preset(model))
    building = run.outputs / ".upload-pretrained.building"
    building.mkdir()
    (building / "half").write_text("x")
    for _ in range(2):
        assert publish(run, "upload-pretrained").returncode == 0
        assert hashes(run.upload("upload-pretrained")) == manifest_of(run)
    assert [path.name for path in run.outputs.iterdir()] == ["upload-pretrained"]


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_is_no_model_is_the_users_mistake(
    model: Path, tmp_path: Path, make_run: MakeRun, missing: str
) -> None:
    source = shutil.copytree(model, tmp_path / "source")
    (source / missing).unlink()
    failed = publish(make_run(upload_preset(source)), "upload-pretrained")
    assert failed.returncode == 64
    assert "Traceback" not in failed.stdout


# --- the Hub


def test_the_hub_gets_the_manifests_files_privately_and_no_token_is_written_anywhere(
    model: Path, tmp_path: Path, hub: FakeHub, make_run: MakeRun, run_stage: RunStage
) -> None:
    run = make_run(upload_preset(model, to="hub", repo="tester/tiny"))
    done = run_stage(run, "upload-pretrained", **hub_env(hub, tmp_path))
    assert done.returncode == 0, done.stdout
    repo = hub.repos["tester/tiny"]
    assert repo.private
    assert {name: hashlib.sha256(data).hexdigest() for name, data in repo.files.items()} == manifest_of(run)
    metrics = read_json(run.result("upload-pretrained"))["metrics"]
    assert metrics["url"] == f"{hub.url}/tester/tiny"
    assert metrics["commit"].startswith("c0ffee")
    assert TOKEN not in done.stdout
    assert TOKEN.encode() not in everything_in(run.root)


def test_publishing_again_makes_no_second_repository(
    model: Path, tmp_path: Path, hub: FakeHub, make_run: MakeRun, run_stage: RunStage
) -> None:
    run = make_run(upload_preset(model, to="hub", repo="tiny"))
    for _ in range(2):
        done = run_stage(run, "upload-pretrained", **hub_env(hub, tmp_path))
        assert done.returncode == 0, done.stdout
    assert list(hub.repos) == ["tester/tiny"]


def test_without_a_login_nothing_is_sent_and_the_user_is_told_to_log_in(
    model: Path, tmp_path: Path, hub: FakeHub, make_run: MakeRun, run_stage: RunStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    run = make_run(upload_preset(model, to="hub", repo="tester/tiny"))
    refused = run_stage(run, "upload-pretrained", **hub_env(hub, tmp_path, token=None))
    assert refused.returncode == 64
    assert "error: you are not logged in to the Hugging Face Hub" in refused.stdout
    assert "hf auth login" in refused.stdout
    assert not hub.repos


def test_a_token_that_the_hub_refuses_is_not_shown(
    model: Path, tmp_path: Path, hub: FakeHub, make_run: MakeRun, run_stage: RunStage
) -> None:
    run = make_run(upload_preset(model, to="hub", repo="tester/tiny"))
    wrong = "hf_" + "WrongWrongWrongWrongWrongWrong1234"
    refused = run_stage(run, "upload-pretrained", **hub_env(hub, tmp_path, token=wrong))
    assert refused.returncode == 64
    assert "does not accept the token" in refused.stdout
    assert wrong not in refused.stdout


def test_a_public_repository_is_not_written_to_when_a_private_one_is_asked_for(
    model: Path, tmp_path: Path, hub: FakeHub, make_run: MakeRun, run_stage: RunStage
) -> None:
    hub.repos["tester/tiny"] = Repo(private=False)
    run = make_run(upload_preset(model, to="hub", repo="tester/tiny"))
    refused = run_stage(run, "upload-pretrained", **hub_env(hub, tmp_path))
    assert refused.returncode == 64
    assert "exists and is public" in refused.stdout
    assert not hub.repos["tester/tiny"].files


def test_what_arrived_changed_is_not_called_published(
    model: Path, tmp_path: Path, hub: FakeHub, make_run: MakeRun, run_stage: RunStage
) -> None:
    hub.corrupt = True
    run = make_run(upload_preset(model, to="hub", repo="tester/tiny"))
    failed = run_stage(run, "upload-pretrained", **hub_env(hub, tmp_path))
    assert failed.returncode == 2
    assert "differs from the file here" in failed.stdout


def test_a_commit_that_the_hub_could_not_take_is_made_by_the_next_start(
    model: Path, tmp_path: Path, hub: FakeHub, make_run: MakeRun, run_stage: RunStage
) -> None:
    hub.fail_commits = 1
    run = make_run(upload_preset(model, to="hub", repo="tester/tiny"))
    first = run_stage(run, "upload-pretrained", **hub_env(hub, tmp_path))
    if first.returncode:
        assert "error: uploading failed" in first.stdout
        assert "resume" in first.stdout
        assert "Traceback" not in first.stdout
        assert not hub.repos["tester/tiny"].files
        assert run_stage(run, "upload-pretrained", **hub_env(hub, tmp_path)).returncode == 0
    files = hub.repos["tester/tiny"].files
    assert {name: hashlib.sha256(data).hexdigest() for name, data in files.items()} == manifest_of(run)


def test_a_hub_that_is_gone_is_one_line(model: Path, tmp_path: Path, make_run: MakeRun, run_stage: RunStage) -> None:
    with FakeHub(TOKEN) as gone:
        env = hub_env(gone, tmp_path)
    failed = run_stage(make_run(upload_preset(model, to="hub", repo="tester/tiny")), "upload-pretrained", **env)
    assert failed.returncode == 2
    assert "error: asking who is logged in failed" in failed.stdout
    assert "Traceback" not in failed.stdout


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("config.json", '"note": "hf_' + "a" * 34 + '"', "a Hugging Face token"),
        ("generation_config.json", '"wandb_key": "' + "0123456789" * 4 + '"', "a W&B API key"),
        ("tokenizer_config.json", '"from": "https://me:pw@example.org/x"', "a password in a URL"),
        ("config.json", '"_name_or_path": "/home/alice/models/x"', "a path of somebody's home folder"),
    ],
)
def test_a_secret_in_a_file_stops_everything_and_is_not_repeated(
    model: Path, tmp_path: Path, hub: FakeHub, make_run: MakeRun, run_stage: RunStage, name: str, text: str, kind: str
) -> None:
    source = shutil.copytree(model, tmp_path / "source")
    document = (source / name).read_text().rstrip()
    (source / name).write_text(f"{document[:-1].rstrip()},\n  {text}\n}}")
    run = make_run(upload_preset(source, to="hub", repo="tester/tiny"))
    refused = run_stage(run, "upload-pretrained", **hub_env(hub, tmp_path))
    assert refused.returncode == 2
    assert f"error: nothing was published: {name} contains {kind}" in refused.stdout
    assert text.split('"')[3] not in refused.stdout
    assert not hub.repos
    assert not run.upload("upload-pretrained").exists()
