"""English and Japanese: every sentence a user reads goes through `tr`, whose catalogues are gettext's.

The source text is English; `core/locale/<language>/LC_MESSAGES/llm_wizard.mo` is made from the .po beside it by
`scripts/catalogue.py`, and a test fails when a sentence has no translation.
"""

from __future__ import annotations

import gettext
import os
from collections.abc import Mapping
from pathlib import Path

LANGUAGES = ("en", "ja")
LOCALE = Path(__file__).parent / "locale"
DOMAIN = "llm_wizard"
_SAMPLE = {"ja": "日本語ワイド。"}

_current: gettext.NullTranslations = gettext.NullTranslations()
_name = "en"


def choose_language(
    asked: str | None, environment: Mapping[str, str] | None = None, encoding: str | None = "utf-8"
) -> str:
    """The language to use: the one asked for, else what LC_ALL, LC_MESSAGES or LANG name, else English.

    English too where `encoding`, that of the terminal, has no characters for the language: rows of ? help nobody.
    """
    name = asked or _named_language(os.environ if environment is None else environment)
    try:
        _SAMPLE.get(name, "").encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "en"
    return name if name in LANGUAGES else "en"


def _named_language(environment: Mapping[str, str]) -> str:
    value = next((environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)), "")
    return value.lower()[:2]


def set_language(name: str) -> None:
    """Use this language from now on; English needs no catalogue."""
    global _current, _name
    _name = name
    _current = (
        gettext.NullTranslations()
        if name == "en"
        else gettext.translation(DOMAIN, LOCALE, languages=[name], fallback=True)
    )


def language() -> str:
    """The language in use."""
    return _name


def tr(text: str, **values: object) -> str:
    """`text` in the language in use, with `{name}` replaced by the values."""
    translated = _current.gettext(text) if text else ""
    return translated.format(**values) if values else translated


def tr_later(text: str) -> str:
    """Marks a constant for the catalogue; `tr` translates it where it is shown, when the language is known."""
    return text
