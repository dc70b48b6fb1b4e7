"""The scan before an upload finds what must not be published, and nothing in ordinary model files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_model import make_model_folder

from core.hub.scan import BLOCK, find_secret

HEX40 = "0123456789abcdef" * 2 + "01234567"

SECRETS = {
    "hf_" + "Ab1" * 12: "a Hugging Face token",
    f"wandb_api_key={HEX40}": "a W&B API key",
    f'{{"api_key": "{HEX40}"}}': "a W&B API key",
    "AKIA" + "ABCDEFGH12345678": "an AWS key",
    "aws_secret_access_key = " + "a1B2/" * 8: "an AWS key",
    '"Authorization": "Bearer abcdefgh12345678"': "an Authorization header",
    "git clone https://me:secret@example.org/x.git": "a password in a URL",
    "-----BEGIN OPENSSH PRIVATE KEY-----": "a private key",
    "made in /home/alice/work": "a path of somebody's home folder",
    "made in /Users/alice/work": "a path of somebody's home folder",
    "made in /root/work": "a path of somebody's home folder",
}


@pytest.mark.parametrize(("text", "kind"), SECRETS.items())
def test_each_kind_is_found(tmp_path: Path, text: str, kind: str) -> None:
    file = tmp_path / "README.md"
    file.write_text(f"# card\n\n{text}\n")
    assert find_secret(file, {}) == kind


@pytest.mark.parametrize(
    "text",
    [
        "the key is to train longer",
        f"commit {HEX40}",
        "https://huggingface.co/tester/model",
        "see https://example.org:8080/path@tag",
        "hf_hub",
        "usr/home/x and ~/models and /home/",
    ],
)
def test_ordinary_text_is_not_taken_for_a_secret(tmp_path: Path, text: str) -> None:
    file = tmp_path / "README.md"
    file.write_text(text)
    assert find_secret(file, {}) is None


def test_a_value_of_the_environment_is_found_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "x.model"
    file.write_bytes(b"\0\1odd-secret-value\0")
    assert find_secret(file, {"MY_PASSWORD": "odd-secret-value"}) == "a secret of this session's environment"
    assert find_secret(file, {"MY_NAME": "odd-secret-value"}) is None


def test_a_secret_across_two_blocks_is_found(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(b" " * (BLOCK - 10) + b"hf_" + b"A" * 30)
    assert find_secret(file, {}) == "a Hugging Face token"


def test_the_header_of_safetensors_is_read_and_its_weights_are_not(tmp_path: Path) -> None:
    secret = "hf_" + "A" * 30
    for text, weights, kind in ((secret, "", "a Hugging Face token"), ("fine", secret, None)):
        header = json.dumps({"__metadata__": {"note": text}}).encode()
        file = tmp_path / "model.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header + weights.encode())
        assert find_secret(file, {}) == kind


def test_a_real_model_folder_is_clean(tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "m")
    assert {file.name: find_secret(file, {}) for file in folder.iterdir()} == dict.fromkeys(
        file.name for file in folder.iterdir()
    )
