"""Finding what must not be published in the files of an upload: tokens, keys, and paths that name a person."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from core.runs.masking import secret_names

KINDS: dict[str, re.Pattern[bytes]] = {
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{20,}"),
    "a W&B API key": re.compile(rb"(?i:key)\W{1,6}[0-9a-f]{40}\b|\bwandb_v1_[A-Za-z0-9_]{20,}"),
    "an AWS key": re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|(?i:aws_secret_access_key)\W{1,6}[A-Za-z0-9/+]{40}"),
    "an Authorization header": re.compile(rb"(?i:authorization)[\"']?\s*:\s*[\"']?(?:Bearer|Basic|Token)\s+\S{8,}"),
    "a password in a URL": re.compile(rb"\b[a-z][a-z0-9+.-]*://[^/\s:@\"']+:[^/\s@\"']+@"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
HOME = re.compile(rb"(?<![\w.])(?:/home/[^/\s\"']+|/Users/[^/\s\"']+|/root)/[^\s\"']")
SMALL_TEXT = 256 * 1024
VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt"}
"""Files whose pieces of text come from the corpus: a path among them names nobody."""

BLOCK, OVERLAP = 1 << 22, 1 << 10


def find_secret(file: Path, environment: Mapping[str, str] | None = None) -> str | None:
    """The kind of the first secret in `file`, or None. Of safetensors only the header is text, and only it is read."""
    environment = os.environ if environment is None else environment
    values = [environment[name].encode() for name in secret_names(environment) if len(environment[name]) >= 8]
    text = file.stat().st_size <= SMALL_TEXT and file.suffix in {".json", ".md", ".txt", ".jinja"}
    tail = b""
    with file.open("rb") as stream:
        left = _text_length(file)
        while left and (block := stream.read(min(BLOCK, left))):
            left -= len(block)
            data = tail + block
            if any(value in data for value in values):
                return "a secret of this session's environment"
            for kind, pattern in KINDS.items():
                if pattern.search(data):
                    return kind
            if text and file.name not in VOCABULARIES and HOME.search(data):
                return "a path of somebody's home folder"
            tail = data[-OVERLAP:]
    return None


def _text_length(file: Path) -> int:
    """Bytes to look at: all of a file, or the header of a safetensors file (its length is the first eight bytes)."""
    size = file.stat().st_size
    if file.suffix != ".safetensors":
        return size
    with file.open("rb") as stream:
        return min(size, 8 + int.from_bytes(stream.read(8), "little"))
