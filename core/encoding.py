"""The encoding in which the terminal reads and shows text: what the user's locale names, where Python chose another."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Mapping
from io import TextIOWrapper


def named_encoding(environment: Mapping[str, str], utf8_mode: bool = False) -> str:
    """The codec that LC_ALL, LC_CTYPE or LANG names after its dot ("euc_jp" for ja_JP.eucJP), or "".

    `utf8_mode` says that Python found the C locale at its start. It then writes C.UTF-8 into LC_CTYPE itself (PEP 538),
    also where LANG names a locale that this machine lacks, so that only LANG still tells what the terminal understands.
    """
    names = [environment.get("LC_ALL", ""), environment.get("LC_CTYPE", ""), environment.get("LANG", "")]
    if utf8_mode and names[1].upper().replace("-", "") in ("C.UTF8", "UTF8"):
        names[1] = ""
    named = next((name for name in names if name), "").partition("@")[0].partition(".")[2]
    try:
        return codecs.lookup(named).name if named else ""
    except LookupError:
        return ""


def use_terminal_encoding() -> None:
    """Let stdin, stdout and stderr use the encoding that the locale names, and show what it lacks as `?`.

    A head node without the user's eucJP locale makes Python speak UTF-8 to a terminal that does not; a head node with it
    makes Python fail at the first character that EUC-JP lacks.
    """
    chosen_by_user = os.environ.get("PYTHONIOENCODING") or os.environ.get("PYTHONUTF8")
    named = "" if chosen_by_user else named_encoding(os.environ, bool(sys.flags.utf8_mode))
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if not isinstance(stream, TextIOWrapper):
            continue
        if named and stream.isatty() and codecs.lookup(stream.encoding).name != named:
            stream.reconfigure(encoding=named)
        if stream.errors == "strict":  # never a traceback over a character; bytes typed as a path stay those bytes
            stream.reconfigure(errors="surrogateescape" if stream is sys.stdin else "replace")


def is_utf8(encoding: str | None) -> bool:
    """Whether a stream of this encoding can show everything."""
    try:
        return bool(encoding) and codecs.lookup(str(encoding)).name == "utf-8"
    except LookupError:
        return False
