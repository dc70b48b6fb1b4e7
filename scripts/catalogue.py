"""The catalogues of sentences: which there are, what is not translated, and the .mo files made from the .po files.

    python scripts/catalogue.py update     # new sentences into every .po; translations stay, unused ones are kept as obsolete
    python scripts/catalogue.py compile    # every .po into the .mo beside it
    python scripts/catalogue.py check      # exit 1 and a list, where anything is missing or does not fit

Sentences come from `tr("...")` and `tr_later("...")` in core and tui, and from texts that are written elsewhere and shown
by `tr`: the help of preset keys, descriptions of presets, titles of stages and checks, cause and fix of failure signatures.
See docs/translations.md.
"""

from __future__ import annotations

import ast
import io
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

if TYPE_CHECKING:
    from babel.messages import Catalog

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from core.language import DOMAIN, LANGUAGES, LOCALE  # noqa: E402

SOURCES = ("core", "tui")
MARKS = ("tr", "tr_later")
HEADERS = [
    ("MIME-Version", "1.0"),
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Transfer-Encoding", "8bit"),
]
"""No dates and no Babel version: a catalogue changes when its sentences do, not when or with what it is written."""


class Sentence(NamedTuple):
    text: str
    place: str
    """The file that holds it, relative to the repository."""


@cache
def sentences() -> tuple[Sentence, ...]:
    """Everything that `tr` may be asked for."""
    return (*_marked(), *_presets(), *_stages(), *_checks(), *_signatures())


def _calls() -> Iterator[tuple[ast.expr, str]]:
    """The first argument of every call of `tr` and `tr_later`, and its file."""
    for folder in SOURCES:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            place = path.relative_to(REPOSITORY).as_posix()
            calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), place)) if _is_mark(node)]
            for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
                yield call.args[0], place


def _is_mark(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in MARKS and bool(node.args)


def _literals(expression: ast.expr) -> Iterator[str]:
    """The strings that an argument may be: itself, or the ends of a condition or an `or`."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        yield expression.value
    elif isinstance(expression, ast.IfExp):
        yield from _literals(expression.body)
        yield from _literals(expression.orelse)
    elif isinstance(expression, ast.BoolOp):
        for part in expression.values:
            yield from _literals(part)


def _marked() -> Iterator[Sentence]:
    for argument, place in _calls():
        for text in _literals(argument):
            yield Sentence(text, place)


def _presets() -> Iterator[Sentence]:
    from core.preset import Preset
    from core.preset_source import load_preset, shipped_presets
    from core.section import Section

    def helps(section: type[Section]) -> Iterator[Sentence]:
        place = section.__module__.replace(".", "/") + ".py"
        for field in section.model_fields.values():
            if field.description:
                yield Sentence(field.description, place)
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                yield from helps(field.annotation)

    yield from helps(Preset)
    for name, path in shipped_presets().items():
        yield Sentence(load_preset(name).preset.description, path.relative_to(REPOSITORY).as_posix())


def _stages() -> Iterator[Sentence]:
    from core.stages import STAGES

    for stage in STAGES:
        yield Sentence(stage.title, stage.plan.__module__.replace(".", "/") + ".py")


def _checks() -> Iterator[Sentence]:
    from core.doctor.checks import CHECKS

    for check in CHECKS:
        place = check.judge.__module__.replace(".", "/") + ".py"
        yield Sentence(check.title, place)
        yield Sentence(check.why, place)


def _signatures() -> Iterator[Sentence]:
    from ruamel.yaml import YAML

    for path in sorted((REPOSITORY / "core/troubleshoot/signatures").glob("*.yaml")):
        for signature in YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8")):
            for key in ("cause", "fix"):
                yield Sentence(signature[key], path.relative_to(REPOSITORY).as_posix())


def template() -> Catalog:
    """The catalogue without translations."""
    from babel.messages import Catalog

    places: dict[str, set[str]] = {}
    for sentence in sentences():
        if sentence.text:
            places.setdefault(sentence.text, set()).add(sentence.place)
    catalog = Catalog()
    for text, where in places.items():
        # Sorted, as they are when the .po is read again: the order in the file follows them.
        catalog.add(text, locations=[(place, None) for place in sorted(where)])
    return catalog


def po_path(language: str) -> Path:
    return LOCALE / language / "LC_MESSAGES" / f"{DOMAIN}.po"


def read(language: str) -> Catalog:
    """A language's .po; an empty one where there is none yet."""
    from babel.messages import Catalog
    from babel.messages.pofile import read_po

    path = po_path(language)
    if not path.is_file():
        return Catalog(locale=language)
    with path.open("rb") as file:
        return read_po(file, locale=language, domain=DOMAIN)


def _plain(catalog: Catalog) -> Catalog:
    """The same sentences under the fixed header."""
    from babel.messages import Catalog

    class Plain(Catalog):
        mime_headers = HEADERS

    plain = Plain(locale=catalog.locale, header_comment="# See docs/translations.md.", fuzzy=False)
    for message in catalog:
        if message.id:
            plain[message.id] = message
    plain.obsolete = catalog.obsolete
    return plain


def write(catalog: Catalog, language: str) -> None:
    """Write a language's .po."""
    from babel.messages.pofile import write_po

    path = po_path(language)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write_po(file, _plain(catalog), width=120, sort_by_file=True, include_lineno=False)


def compiled(language: str) -> bytes:
    """What the .mo of a language must hold; the same bytes for the same .po."""
    from babel.messages.mofile import write_mo

    file = io.BytesIO()
    write_mo(file, _plain(read(language)))
    return file.getvalue()


def placeholders(text: str) -> list[str]:
    """The names in braces."""
    return sorted(re.findall(r"\{(\w+)(?:[:!][^{}]*)?\}", text))


def does_not_fit(original: str, translation: str) -> str:
    """Why a translation cannot take the original's place; empty where it can."""
    if placeholders(original) != placeholders(translation):
        return f"has {placeholders(translation)} in braces instead of {placeholders(original)}"
    for name, edge in (("start", slice(0, 1)), ("end", slice(-1, None))):
        if original[edge].isspace() != translation[edge].isspace():
            return f"differs in white space at the {name}"
    return ""


def problems(language: str) -> Iterator[str]:
    """Everything that is wrong with a language's catalogue, a line each."""
    catalog = read(language)
    for message in template():
        if not message.id:
            continue
        found = catalog.get(message.id)
        place = message.locations[0][0]
        if found is None or not found.string:
            yield f"{language}: not translated: {message.id!r} ({place})"
        elif found.fuzzy:
            yield f"{language}: fuzzy: {message.id!r} ({place})"
        elif reason := does_not_fit(str(message.id), str(found.string)):
            yield f"{language}: {found.string!r} {reason} ({place})"
    mo = po_path(language).with_suffix(".mo")
    if not mo.is_file() or mo.read_bytes() != compiled(language):
        yield f"{language}: {mo.name} is not that of the .po; run `python scripts/catalogue.py compile`"


def not_extractable() -> Iterator[str]:
    """Calls whose sentence is put together before `tr` sees it, so that no catalogue can hold it."""
    for argument, place in _calls():
        if isinstance(argument, ast.JoinedStr | ast.BinOp):
            yield f"{place}:{argument.lineno}: not one plain string; put the values in as {{name}}: {ast.unparse(argument)}"


def main(action: str) -> int:
    languages = [language for language in LANGUAGES if language != "en"]
    if action == "update":
        new = template()
        for language in languages:
            catalog = read(language)
            catalog.update(new, no_fuzzy_matching=True)
            write(catalog, language)
        return 0
    if action == "compile":
        for language in languages:
            po_path(language).with_suffix(".mo").write_bytes(compiled(language))
        return 0
    if action == "check":
        found = [*not_extractable(), *(line for language in languages for line in problems(language))]
        print("\n".join(found) or "all sentences are translated")
        return 1 if found else 0
    print(__doc__, file=sys.stderr)
    return 64


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) == 2 else ""))
