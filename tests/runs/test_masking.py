"""Secrets are masked before the log reaches the disk."""

from __future__ import annotations

import pytest

from core.runs.masking import Masker

TOKEN = "hf_" + "a1B2" * 8


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        (f"token {TOKEN} here", "token *** here"),
        ("Authorization: Bearer abcdef123456", "Authorization: Bearer ***"),
        ("https://user:secret@host/path", "https://***@host/path"),
        ("X-Amz-Signature=abc123&x=1", "X-Amz-Signature=***&x=1"),
        ("api_key = '0123456789abcdef'", "api_key = '***'"),
        ("commit 4acf3d04acf3d04acf3d04acf3d04acf3d04acf3", "commit 4acf3d04acf3d04acf3d04acf3d04acf3d04acf3"),
        ("loss: 3.2 | tokens: 1234567890", "loss: 3.2 | tokens: 1234567890"),
    ],
)
def test_what_looks_like_a_secret_is_masked_and_the_rest_is_not(line: str, masked: str) -> None:
    assert Masker({}).mask(line.encode()).decode() == masked


def test_the_exact_values_of_the_environment_are_masked() -> None:
    masker = Masker({"MY_PASSWORD": "correct horse", "HOME": "/root/longer", "SHORT_KEY": "abc"})
    assert masker.mask(b"say correct horse in /root/longer abc") == b"say *** in /root/longer abc"


@pytest.mark.parametrize("cut", range(1, len(TOKEN) + 6))
def test_a_secret_is_found_wherever_the_chunk_border_falls(cut: int) -> None:
    text = f"say {TOKEN}!\n".encode()
    masker = Masker({})
    assert masker.feed(text[:cut]) + masker.feed(text[cut:]) == b"say ***!\n"


def test_an_unfinished_line_is_held_until_it_is_flushed() -> None:
    masker = Masker({})
    assert masker.feed(b"half a li") == b""
    assert masker.flush() == b"half a li"
