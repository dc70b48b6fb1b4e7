"""Making hostile text plain before it reaches a terminal."""

from __future__ import annotations

import re

# CSI, OSC/DCS/SOS/PM/APC strings with their terminators, and two-character escapes; the 8-bit forms (U+0080..U+009F)
# are dropped by code point after decoding, because as bytes they are also the tails of ordinary UTF-8 characters.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_NO_UNICODE = re.compile(r"[\ud800-\udfff]")
"""What Python makes of bytes in a file's name that are no UTF-8; no terminal, clipboard or JSON takes it."""


def plain(text: str) -> str:
    """`text` without escape sequences and control characters, fit for any encoder; tabs and newlines stay, \\r\\n is a newline.

    A progress bar's carriage returns keep only what stands after the last of them on its line.
    """
    text = _SEQUENCES.sub("", text.replace("\r\n", "\n"))
    if "\r" in text:
        text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    text = _CONTROLS.sub("", text)
    return text if text.isascii() else _NO_UNICODE.sub("?", text)


def one_line(text: str) -> str:
    """`plain(text)` in one line: a name or a message for a row of a list."""
    return plain(text).replace("\n", " ").replace("\t", " ")
