"""The sizes and special ids that the model must share with the tokenizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from core.errors import StageError

BOS, EOS, PAD, EOD = "<s>", "</s>", "<pad>", "<EOD>"


@dataclass(frozen=True)
class Vocabulary:
    """Pieces in the tokenizer and the ids of the special ones; `eod` is None where there is no <EOD>."""

    size: int
    bos: int
    eos: int
    pad: int
    eod: int | None

    def padded(self, multiple: int) -> int:
        """Rows of the embedding while training: the size rounded up to whole multiples."""
        return -(-self.size // multiple) * multiple

    def document(self) -> dict[str, Any]:
        return asdict(self)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the Hugging Face tokenizer folder that the tokenizer stage made.

    Raises:
        StageError: there is no tokenizer, it cannot be read, or it lacks <s>, </s> or <pad>.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise StageError(f"there is no tokenizer at {file}", "run the tokenizer stage first: `--from tokenizer`")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises bare Exceptions
        raise StageError(f"{file} is not a tokenizer: {error}", "make it again: `--from tokenizer`") from None
    found = {piece: tokenizer.token_to_id(piece) for piece in (BOS, EOS, PAD, EOD)}
    ids = {piece: number for piece, number in found.items() if number is not None}
    if absent := [piece for piece in (BOS, EOS, PAD) if piece not in ids]:
        raise StageError(
            f"the tokenizer in {folder} has no {', '.join(absent)}",
            "add them to tokenizer.user_defined_symbols and train it again",
        )
    return Vocabulary(tokenizer.get_vocab_size(), ids[BOS], ids[EOS], ids[PAD], ids.get(EOD))
