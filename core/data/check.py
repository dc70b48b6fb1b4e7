"""What is wrong with a pair of token files, how that is known, and what would mend it. Nothing is changed here."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.damage import USUAL_TYPES, Found, Status, other_type, sizes_differ, unusual_damage, usual_damage
from core.data.ends import (
    Progress,
    chunks,
    ending_with,
    index_by_ends,
    map_tokens,
    no_progress,
    not_empty_ends,
)
from core.data.index_cache import stale_orders
from core.data.indexed import LEGACY_MAGIC, Index, files_of, read_index, token_dtype
from core.data.manifest import manifest_path
from core.data.old_index import read_old_index
from core.data.repair import Repair, stamps
from core.errors import InputError
from core.files import read_json
from core.language import tr
from core.tokenizer.megatron_ids import megatron_ids
from core.tokenizer.model_file import parse_model
from core.tokenizer.special import find_special

LOOKED_AT = 1 << 20


@dataclass(frozen=True)
class Vocabulary:
    """`pieces`: ids of the tokenizer; `size`: with those that Megatron adds to it; `eods`: what may end a document, the likeliest first."""

    pieces: int
    size: int
    eods: tuple[int, ...]


def vocabulary_of(model: Path) -> Vocabulary:
    """Raises InputError: it cannot be read, or is no SentencePiece model."""
    try:
        data = model.read_bytes()
    except OSError as error:
        raise InputError(
            f"the tokenizer {model} cannot be read: {error.strerror}", "--tokenizer takes a .model"
        ) from None
    ours = find_special(parse_model(data, str(model)), str(model)).ids["eod"]
    theirs = megatron_ids(data)
    # Where there is no <EOD>, Megatron adds one, and this tool takes </s>.
    return Vocabulary(theirs.pieces, theirs.size, tuple(dict.fromkeys((theirs.eod, ours))))


def vocabulary_beside(prefix: Path) -> Vocabulary | None:
    """What the manifest of this tool's own token files says; None where there is none."""
    try:
        manifest = read_json(manifest_path(prefix))
        pieces, eod = int(manifest["vocab_size"]), int(manifest["eod_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Vocabulary(pieces, pieces, (eod,))


@dataclass
class Report:
    """What was found about one prefix. `index` is the right one, whether it is in the file or would be after `repair`."""

    prefix: Path
    found: list[Found] = field(default_factory=list)
    index: Index | None = None
    repair: Repair | None = None
    mended_by_repair: set[str] = field(default_factory=set)

    @property
    def status(self) -> Status:
        statuses = {one.status for one in self.found}
        return "fail" if "fail" in statuses else "warn" if "warn" in statuses else "pass"

    @property
    def unmended(self) -> list[Found]:
        """Problems that the repair, if there is one, leaves as they are."""
        return [one for one in self.found if one.status != "pass" and one.id not in self.mended_by_repair]

    def document(self) -> dict[str, Any]:
        """One entry of `files` in `data check --json`."""
        bin_path, idx_path = files_of(self.prefix)
        index = self.index
        return {
            "prefix": str(self.prefix),
            "bin": str(bin_path),
            "idx": str(idx_path),
            "status": self.status,
            "documents": None if index is None else len(index.documents) - 1,
            "tokens": None if index is None else index.tokens,
            "dtype": None if index is None else index.dtype.name,
            "findings": [{**one.document(), "mended": one.id in self.mended_by_repair} for one in self.found],
            "repair": self.repair.preview() if self.repair else None,
        }


def check(prefix: Path, vocabulary: Vocabulary | None, on_progress: Progress = no_progress) -> Report:
    """Look at {prefix}.bin and {prefix}.idx, and at the index-cache beside them.

    With a vocabulary every token is read once (that the ids are within it, that documents end with its end-of-document token);
    without, only as much as is needed to explain a damage.
    """
    report, before = Report(prefix), stamps(prefix)
    bin_path, idx_path = files_of(prefix)
    vocabulary = vocabulary or vocabulary_beside(prefix)
    if not bin_path.is_file():
        _fail(report, "bin.missing", tr("{file} does not exist", file=bin_path), hint=_again())
        return report
    size = bin_path.stat().st_size
    if size == 0:
        why = tr("preprocess_data.py ends like this, with exit code 0, where a line of the text is broken")
        _fail(report, "bin.empty", tr("{file} is empty", file=bin_path), why, _again())
        return report
    index = _index_in(idx_path, report)
    if index is None:
        _by_ends(report, bin_path, vocabulary, on_progress)
    else:
        _compare(report, bin_path, size, index, vocabulary, on_progress)
    if report.index is None:
        report.mended_by_repair.clear()
        return report
    _look_at_content(report, bin_path, vocabulary, on_progress)
    changed = bool(report.mended_by_repair)
    stale = stale_orders(prefix, report.index.sizes)
    for one in stale:
        why = tr("Megatron would read its samples at wrong places, without a word")
        summary = tr("{file} was made for other token files: {why}", file=one.files[0], why=one.why)
        _fail(report, "cache.stale", summary, why)
        report.mended_by_repair.add("cache.stale")
    if changed or stale:
        kept = report.index.tokens * report.index.dtype.itemsize
        files = tuple(path for one in stale for path in one.files)
        cut = kept if changed and kept < size else None
        report.repair = Repair(prefix, report.index if changed else None, cut, files, before)
    if not report.unmended and not report.mended_by_repair:
        report.found.insert(0, _all_is_well(report.index, vocabulary))
    return report


def _fail(report: Report, name: str, summary: str, why: str = "", hint: str = "") -> None:
    report.found.append(Found(name, "fail", summary, why, hint))


def _again() -> str:
    return tr("make the token files again")


def _index_in(path: Path, report: Report) -> Index | None:
    """The index in the file; None, and the reason among the findings, where there is none that can be used."""
    if not path.is_file():
        why = tr("preprocess_data.py ends like this, with exit code 0, where a line of the text is broken")
        _fail(report, "idx.missing", tr("{file} does not exist", file=path), why)
        return None
    if path.stat().st_size == 0:
        _fail(report, "idx.empty", tr("{file} is empty", file=path))
        return None
    try:
        with path.open("rb") as file:
            old = file.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC
        index = read_old_index(path) if old else read_index(path)
    except InputError as error:
        _fail(report, "idx.damaged", error.message)
        return None
    if old:
        why = tr("Megatron reads it with --data-impl lazy or cached only, and the presets say mmap")
        _fail(report, "idx.old-format", tr("{file} is in Megatron's old format (TNTIDX)", file=path), why)
        report.mended_by_repair.add("idx.old-format")
    return index


def _by_ends(report: Report, path: Path, vocabulary: Vocabulary | None, on_progress: Progress) -> None:
    """Make an index from where the end-of-document token stands."""
    last = report.found[-1]
    if vocabulary is None:
        hint = tr("name the tokenizer that made the files: --tokenizer MODEL")
        report.found[-1] = Found(last.id, last.status, last.summary, last.why, hint)
        return
    tokens = _tokens_by_vocabulary(path, vocabulary)
    for eod in vocabulary.eods if tokens is not None else ():
        assert tokens is not None
        index = index_by_ends(tokens, eod, on_progress)
        if len(index.sizes):
            report.index = index
            report.mended_by_repair.add(last.id)
            return
    hint = tr(
        "the .bin holds no end-of-document token of this tokenizer (id {id}): name the one that made it, or make the files again",
        id=vocabulary.eods[0],
    )
    report.found[-1] = Found(last.id, last.status, last.summary, last.why, hint)


def _tokens_by_vocabulary(path: Path, vocabulary: Vocabulary) -> NDArray[Any] | None:
    """The tokens of a .bin of unknown type: Megatron's own choice for this vocabulary, or the other, whichever makes ids of it."""
    for dtype in dict.fromkeys((token_dtype(vocabulary.size), *USUAL_TYPES)):
        tokens = map_tokens(path, dtype)
        some = np.asarray(tokens[:LOOKED_AT])
        if len(some) == 0 or int(some.min()) < 0 or int(some.max()) >= vocabulary.size:
            continue
        if dtype.itemsize == 2 and len(some) > 1 and not some[1::2].any():
            continue  # 32-bit ids: every other half is 0
        return tokens
    return None


def _compare(
    report: Report, path: Path, size: int, index: Index, vocabulary: Vocabulary | None, on_progress: Progress
) -> None:
    """Does the index tell of this .bin? If not, which damage explains both, as the ends of the documents show."""
    if size == index.tokens * index.dtype.itemsize:
        report.index = index
        return
    eods = vocabulary.eods if vocabulary else ()
    possible = usual_damage(path, size, index, eods) or unusual_damage(path, size, index, eods, on_progress)
    if len(possible) == 1:
        found, report.index = possible[0]
        report.found += found
        report.mended_by_repair.update(one.id for one in found)
        return
    if possible:
        names = " / ".join(" + ".join(one.id for one in found) for found, _ in possible)
        why = tr("several damages would explain it: {names}", names=names)
    else:
        why = tr("no known damage explains it: the documents would not end where the end-of-document token stands")
    hint = tr("name the tokenizer that made the files: --tokenizer MODEL") if vocabulary is None else _again()
    report.found.append(replace(sizes_differ(path, size, index), why=why, hint=hint))


def _look_at_content(report: Report, path: Path, vocabulary: Vocabulary | None, on_progress: Progress) -> None:
    """The ids against the vocabulary, the ends of the documents against its end-of-document token."""
    assert report.index is not None
    if vocabulary is None:
        return
    tokens = map_tokens(path, report.index.dtype)[: report.index.tokens]
    lowest, highest = 0, 0
    for some in chunks(tokens, on_progress):
        lowest, highest = min(lowest, int(some.min())), max(highest, int(some.max()))
    if lowest < 0 and _unsigned_fits(tokens, vocabulary):
        unsigned = np.dtype(f"<u{tokens.dtype.itemsize}")
        why = tr("read as the index says, ids are below 0")
        report.found.append(other_type(path, tokens.dtype, unsigned, why))
        report.mended_by_repair.add("dtype.other")
        report.index = report.index._replace(dtype=unsigned)
        return
    other = tr("the files were made with another tokenizer; name that one, or make them again")
    if lowest < 0 or highest >= vocabulary.size:
        summary = tr(
            "{file} holds the id {id}; the vocabulary has the ids 0 to {last}",
            file=path,
            id=lowest if lowest < 0 else highest,
            last=vocabulary.size - 1,
        )
        _fail(report, "ids.beyond-vocabulary", summary, tr("training ends with an index out of range"), other)
        return
    if np.iinfo(tokens.dtype).max < vocabulary.pieces - 1:
        summary = tr("{dtype} has no room for the ids 0 to {last}", dtype=tokens.dtype.name, last=vocabulary.pieces - 1)
        _fail(report, "dtype.too-small", summary, tr("larger ids would have wrapped around"), other)
        return
    if highest >= vocabulary.pieces:
        summary = tr(
            "{file} holds ids up to {id}, which Megatron adds to the tokenizer's {pieces} pieces (<PAD>, <BOS>, <EOS> in the text)",
            file=path,
            id=highest,
            pieces=vocabulary.pieces,
        )
        report.found.append(
            Found(
                "ids.added-by-megatron", "warn", summary, tr("the tokenizer in Hugging Face format does not have them")
            )
        )
    ends = not_empty_ends(report.index)
    ended = max(ending_with(tokens, ends, eod) for eod in vocabulary.eods)
    if ended < len(ends):
        summary = tr(
            "{ended} of {documents} documents end with the end-of-document token (id {id})",
            ended=f"{ended:,}",
            documents=f"{len(ends):,}",
            id=vocabulary.eods[0],
        )
        why = tr("the files were made without --append-eod, or with another tokenizer")
        report.found.append(Found("eod.missing", "warn", summary, why, _again()))


def _unsigned_fits(tokens: NDArray[Any], vocabulary: Vocabulary) -> bool:
    unsigned = tokens.view(f"<u{tokens.dtype.itemsize}")
    return all(int(some.max()) < vocabulary.size for some in chunks(unsigned))


def _all_is_well(index: Index, vocabulary: Vocabulary | None) -> Found:
    summary = tr(
        "{documents} documents, {tokens} tokens, {dtype}",
        documents=f"{len(index.documents) - 1:,}",
        tokens=f"{index.tokens:,}",
        dtype=index.dtype.name,
    )
    if vocabulary is None:
        summary += tr("; ids and ends of documents are looked at with --tokenizer MODEL")
    elif index.dtype.itemsize > token_dtype(vocabulary.size).itemsize:
        summary += tr("; {dtype} would do, in half the room", dtype=token_dtype(vocabulary.size).name)
    return Found("files", "pass", summary)
