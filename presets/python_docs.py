"""Writes a small corpus of real text that every machine with Python has: Python's own documentation.

    python python_docs.py OUTPUT_DIR

makes OUTPUT_DIR/pretrain.jsonl, one `{"text": ...}` a document (the language reference of pydoc_data.topics, the
docstrings and comments of the standard library, the docstrings of the built-in modules), and OUTPUT_DIR/chat.jsonl,
one `{"messages": [question, answer]}` a documented object ("What does `os.path.join` do?" -> the docstring's summary).

Source files are parsed, not imported, so nothing of the standard library runs; only built-in modules without a source
file are imported. The same Python gives the same bytes: nothing depends on the machine, the folder or the time.
Documents are in the order of their hash, so that any stretch of the file is a fair sample of it.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SKIPPED_FOLDERS = {
    "__phello__", "__pycache__", "dist-packages", "encodings", "ensurepip", "idlelib", "lib2to3", "lib-dynload",
    "pydoc_data", "site-packages", "test", "tests", "turtledemo",
}  # fmt: skip
# ntpath repeats posixpath for Windows; what a distribution puts in sitecustomize is its own, not Python's.
SKIPPED_MODULES = {"ntpath", "sitecustomize", "usercustomize", "antigravity"}
PUBLIC_NAMES = {
    "posixpath": "os.path",
    "_collections_abc": "collections.abc",
    "_pydatetime": "datetime",
    "_pydecimal": "decimal",
    "_pyio": "io",
}
BUILT_IN_MODULES = {
    "builtins": "", "_bisect": "bisect", "_bz2": "bz2", "_codecs": "codecs", "_collections": "collections",
    "_contextvars": "contextvars", "_csv": "csv", "_datetime": "datetime", "_decimal": "decimal",
    "_functools": "functools", "_hashlib": "hashlib", "_heapq": "heapq", "_io": "io", "_json": "json", "_lzma": "lzma",
    "_operator": "operator", "_pickle": "pickle", "_queue": "queue", "_random": "random", "_signal": "signal",
    "_socket": "socket", "_sqlite3": "sqlite3", "_sre": "re", "_ssl": "ssl", "_struct": "struct", "_thread": "_thread",
    "_weakref": "weakref", "array": "array", "atexit": "atexit", "binascii": "binascii", "cmath": "cmath",
    "errno": "errno", "faulthandler": "faulthandler", "fcntl": "fcntl", "gc": "gc", "grp": "grp", "itertools": "itertools",
    "marshal": "marshal", "math": "math", "mmap": "mmap", "posix": "os", "pwd": "pwd", "pyexpat": "xml.parsers.expat",
    "resource": "resource", "select": "select", "sys": "sys", "syslog": "syslog", "termios": "termios", "time": "time",
    "unicodedata": "unicodedata", "zlib": "zlib",
}  # fmt: skip

ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}", re.IGNORECASE)
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
COMMENT = re.compile(r"^\s*#(?!!)\s?(.*)$")

QUESTIONS = {
    "function": (
        "What does `{name}` do?",
        "What is `{name}` for?",
        "Explain `{name}` in one sentence.",
        "What happens when I call `{name}`?",
        "In Python, what does the function `{name}` do?",
    ),
    "class": (
        "What is `{name}`?",
        "What is the class `{name}` for?",
        "Describe `{name}` in one sentence.",
        "In Python, what is a `{name}`?",
        "When do I need `{name}`?",
    ),
    "module": (
        "What is the module `{name}` for?",
        "What does the `{name}` module contain?",
        "Describe the Python module `{name}`.",
        "What can I do with `{name}`?",
    ),
}


class Entry(NamedTuple):
    """One documented object: `level` is its depth below the module, `signature` what a call looks like."""

    kind: str
    name: str
    signature: str
    docstring: str
    level: int


def clean(text: str) -> str:
    """Docstring text with even indentation, plain line ends, and no control characters."""
    text = CONTROL.sub("", inspect.cleandoc(text))
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def digest(text: str) -> int:
    """A number that depends on nothing but the text."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def source_files() -> Iterator[tuple[str, Path]]:
    """Name and path of each module of the standard library that has a source file, tests and applications left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        folders = set(parts[:-1])
        if folders & SKIPPED_FOLDERS or any(folder.startswith("config-") for folder in folders):
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name not in SKIPPED_MODULES and not name.startswith("_sysconfigdata"):
            yield PUBLIC_NAMES.get(name, name), path


def walk_source(module: str, tree: ast.Module) -> Iterator[Entry]:
    """The documented objects of a module, each class followed by its methods."""
    yield Entry("module", module, module, ast.get_docstring(tree, clean=False) or "", 0)
    yield from _walk_body(module, tree.body, 0)


def _walk_body(prefix: str, body: list[ast.stmt], level: int) -> Iterator[Entry]:
    for node in body:
        if isinstance(node, (ast.If, ast.Try)):  # definitions that depend on the platform or on an import
            yield from _walk_body(prefix, node.body, level)
        elif isinstance(node, ast.ClassDef):
            bases = ", ".join(ast.unparse(base) for base in node.bases)
            name = f"{prefix}.{node.name}"
            docstring = ast.get_docstring(node, clean=False) or ""
            yield Entry("class", name, f"class {name}({bases})" if bases else f"class {name}", docstring, level)
            yield from _walk_body(name, node.body, level + 1)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name = f"{prefix}.{node.name}"
            word = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            signature = f"{word}{name if level == 0 else node.name}({ast.unparse(node.args)}){returns}"
            yield Entry("function", name, signature, ast.get_docstring(node, clean=False) or "", level)


def walk_built_in(module: str, public: str) -> Iterator[Entry]:
    """The documented objects of a built-in module; nothing where this Python was built without it."""
    try:
        loaded = importlib.import_module(module)
    except ImportError:
        return
    prefix = f"{public}." if public else ""
    if not module.startswith("_") and module != "posix":
        yield Entry("module", module, module, loaded.__doc__ or "", 0)
    for name in sorted(vars(loaded)):
        value = vars(loaded)[name]
        if name.startswith("_") or inspect.ismodule(value):
            continue
        # What a built-in module borrows from elsewhere is documented there.
        if (getattr(value, "__module__", None) or module) not in {module, public, "builtins"}:
            continue
        if inspect.isclass(value):
            yield Entry("class", prefix + name, f"class {prefix}{name}", value.__doc__ or "", 0)
            for key in sorted(vars(value)):
                member = vars(value)[key]
                if (
                    callable(member)
                    or inspect.isdatadescriptor(member)
                    or isinstance(member, (classmethod, staticmethod))
                ):
                    yield Entry("function", f"{prefix}{name}.{key}", _signature(key, member), _docstring(member), 1)
        elif callable(value):
            yield Entry("function", prefix + name, _signature(prefix + name, value), _docstring(value), 0)


def _docstring(value: object) -> str:
    text = getattr(value, "__doc__", None)
    return text if isinstance(text, str) else ""


def _signature(name: str, value: object) -> str:
    # The text that the C source gives: inspect.signature would print addresses of default values.
    text = getattr(value, "__text_signature__", None)
    return name + re.sub(r"\$\w+(, /)?(, )?", "", text) if isinstance(text, str) else name


def render(entries: list[Entry]) -> Iterator[str]:
    """One document an object of the module's top level: a class with its methods, a function, the module itself."""
    groups: list[list[Entry]] = []
    for entry in entries:
        if entry.level == 0:
            groups.append([])
        groups[-1].append(entry)
    for group in groups:
        if not any(clean(entry.docstring) for entry in group):
            continue
        # A class without a docstring still introduces its documented methods.
        shown = [entry for entry in group if entry.kind == "class" or clean(entry.docstring)]
        yield "\n\n".join(_paragraph(entry) for entry in shown)


def _paragraph(entry: Entry) -> str:
    lines = [entry.signature, *(f"    {line}" if line else "" for line in clean(entry.docstring).splitlines())]
    indent = "    " * entry.level
    return "\n".join(f"{indent}{line}" if line else "" for line in lines)


def comments(module: str, source: str) -> str:
    """The explanations among a module's comments, one paragraph each; short remarks and commented-out code left out."""
    paragraphs: list[str] = []
    block: list[str] = []
    for line in [*source.splitlines(), ""]:
        found = COMMENT.match(line)
        if found:
            block.append(found[1].rstrip())
            continue
        text = "\n".join(block).strip(" \n#*=-")
        if len(block) >= 2 and len(text) >= 120 and is_prose(text):
            paragraphs.append(clean(text))
        block = []
    return "\n\n".join([f"Notes in the source of {module}", *paragraphs]) if paragraphs else ""


def is_prose(text: str) -> bool:
    """Whether a comment reads as sentences rather than as code, a table or a rule."""
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= 0.8 * len(text) and "copyright" not in text.lower()


def summary(docstring: str) -> str:
    """The first sentence of the first paragraph that is one, on one line; empty where there is none to be had."""
    for paragraph in re.split(r"\n\s*\n", clean(docstring)):
        line = " ".join(paragraph.split())
        # The docstrings of C code begin with what a call looks like: `max(iterable) -> value`.
        if re.match(r"[\w.]+\(.*\)", line) or line.startswith((">>>", "*", "-", "+", "|", "=", ":", "@", "#")):
            continue
        line = re.sub(r":\w+:`([^`]*)`", r"`\1`", line).replace("``", "`")
        sentence = re.split(r"(?<=[^.][.!?])\s+(?=[A-Z`])", line, maxsplit=1)[0].rstrip(" :;,")
        if not 20 <= len(sentence) <= 300 or " " not in sentence:
            return ""
        if sentence.split()[0].isalpha():
            sentence = sentence[0].upper() + sentence[1:]
        return sentence if sentence[-1] in ".!?" else f"{sentence}."
    return ""


def question(entry: Entry) -> dict[str, list[dict[str, str]]] | None:
    """A question about a public object and its answer; None where the docstring answers nothing."""
    if any(part.startswith("_") for part in entry.name.split(".")):
        return None
    answer = summary(entry.docstring)
    if not answer or not presentable(answer):
        return None
    phrasings = QUESTIONS[entry.kind]
    text = phrasings[digest(f"question {entry.name}") % len(phrasings)].format(name=entry.name)
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]}


def presentable(text: str) -> bool:
    """Whether the text is valid Unicode, long enough to learn from, and without memory addresses."""
    return len(text) >= 20 and not ADDRESS.search(text) and not any("\ud800" <= c <= "\udfff" for c in text)


def collect() -> tuple[list[str], list[dict[str, list[dict[str, str]]]]]:
    """All documents and all questions, in the order of the sources, duplicates included."""
    from pydoc_data.topics import topics

    documents = [clean(topics[name]) for name in sorted(topics)]
    entries: list[Entry] = []
    for module, path in source_files():
        source = path.read_bytes().decode("utf-8", "replace")
        try:
            found = list(walk_source(module, ast.parse(source)))
        except (SyntaxError, ValueError):  # a file in another encoding, or made broken on purpose
            continue
        documents += [*render(found), comments(module, source)]
        entries += found
    for module, public in BUILT_IN_MODULES.items():
        found = list(walk_built_in(module, public))
        documents += render(found)
        entries += found
    return documents, [asked for asked in map(question, entries) if asked]


def write_lines(path: Path, records: list[str]) -> None:
    """Write the records in hash order, one a line, each once; the file appears whole or not at all."""
    lines = sorted(set(records), key=lambda line: (digest(line), line))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    temporary.replace(path)
    print(f"{path.name}: {len(lines)} records, {path.stat().st_size} bytes")


def main(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0].startswith("-"):
        print(f"usage: python {Path(__file__).name} OUTPUT_DIR", file=sys.stderr)
        return 64
    folder = Path(argv[0])
    folder.mkdir(parents=True, exist_ok=True)
    documents, questions = collect()
    by_question = {asked["messages"][0]["content"]: asked for asked in reversed(questions)}
    write_lines(folder / "pretrain.jsonl", [_line({"text": text}) for text in documents if presentable(text)])
    write_lines(folder / "chat.jsonl", [_line(asked) for asked in by_question.values()])
    return 0


def _line(record: object) -> str:
    return json.dumps(record, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
