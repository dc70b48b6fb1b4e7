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

_current: gettext.NullTranslations = gettext.NullTranslations()
_name = "en"


def choose_language(asked: str | None, environment: Mapping[str, str] | None = None) -> str:
    """The language to use: the one asked for, else what LC_ALL, LC_MESSAGES or LANG name, else English."""
    if asked:
        return asked if asked in LANGUAGES else "en"
    environment = os.environ if environment is None else environment
    for variable in ("LC_ALL", "LC_MESSAGES", "LANG"):
        value = environment.get(variable, "")
        if value:
            return "ja" if value.lower().startswith("ja") else "en"
    return "en"


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
