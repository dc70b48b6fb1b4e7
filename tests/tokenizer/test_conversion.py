"""The Hugging Face tokenizer gives SentencePiece's ids and text, on text that neither has seen."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from small_tokenizer import Converted, texts, train_small
from transformers import AutoTokenizer

from core.errors import InputError, StageError
from core.tokenizer.model_file import ModelFile, parse_model
from core.tokenizer.probes import PROBES
from core.tokenizer.proof import prove
from core.tokenizer.special import find_special

LINES = 4000
JAPANESE = [(0x3041, 0x3096), (0x30A1, 0x30FA), (0xFF61, 0xFF9F), (0x3000, 0x303F), (0x20, 0x7E), (0x4E00, 0x4EFF)]
BLOCKS = [
    *JAPANESE,
    *[(0x01, 0x1F), (0xA0, 0x17F), (0x300, 0x36F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F)],
    *[(0x1100, 0x11FF), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x20A0, 0x218F), (0x2460, 0x24FF), (0x2500, 0x25FF)],
    *[(0x3130, 0x318F), (0x3200, 0x33FF), (0xAC00, 0xACFF), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFF00, 0xFFEF)],
    *[(0x1D400, 0x1D4FF), (0x1F300, 0x1FAFF), (0x2F800, 0x2F8FF)],
]
ATOMS = [
    *["<s>", "</s>", "<pad>", "<CLS>", "<SEP>", "<EOD>", "<MASK>", "\n", "<unk>", "<0x0A>", "<0xE3>", "<", "0x", ">"],
    *["=", "==", "-", "*", "#", "_", " ", "  ", "    ", "        ", "\t", "\r\n", "▁", "▁▁", "(", "()", ".", "1", "23"],
    *["a", "the", " the", "return", "self.", "吾輩", "。", "の", "😀", "\u3099"],
]


def of_blocks(order: random.Random, blocks: list[tuple[int, int]], longest: int) -> str:
    return "".join(chr(order.randint(*order.choice(blocks))) for _ in range(order.randint(1, longest)))


def fuzz(kind: str, seed: int) -> list[str]:
    order = random.Random(seed)
    if kind == "japanese":
        return [of_blocks(order, JAPANESE, 40) for _ in range(LINES)]
    if kind == "any unicode":
        return [of_blocks(order, order.sample(BLOCKS, order.randint(1, 4)), 30) for _ in range(LINES)]
    if kind == "symbols and runs":
        counts = [1, 1, 1, 2, 3, 5, 9, 17]
        return [
            "".join(order.choice(ATOMS) * order.choice(counts) for _ in range(order.randint(1, 12)))
            for _ in range(LINES)
        ]
    documents = [text for text in texts() if len(text) > 40]
    cuts = [(order.choice(documents), order.random(), order.randint(1, 400)) for _ in range(LINES)]
    return [text[int(share * len(text)) :][:size] for text, share, size in cuts]


def differences(folder: Path, model: ModelFile, lines: list[str]) -> list[str]:
    """Lines whose ids differ, whose decoded text differs, or that SentencePiece does not give back."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.data)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    ids, found = processor.encode(lines), tokenizer(lines, verbose=False)["input_ids"]
    decoded, texts_found = processor.decode(ids), tokenizer.batch_decode(ids)
    return [
        line
        for line, right, got, text, text_got in zip(lines, ids, found, decoded, texts_found, strict=True)
        if right != got or text != text_got or text != line.replace("▁", " ")
    ]


@pytest.mark.parametrize("kind", ["japanese", "any unicode", "symbols and runs", "python"])
@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_no_line_of_thousands_differs(converted: Converted, model_type: str, kind: str) -> None:
    folder, model = converted(model_type=model_type)
    different = differences(folder, model, fuzz(kind, seed=20261124))
    if (model_type, kind) == ("unigram", "symbols and runs"):
        # Seventeen <SEP>, then a run of asterisks: scores of symbols are multiples of 0.1, which 32 bits round.
        assert len(different) <= LINES // 1000
        assert prove(folder, model, different, [], trained_here=True).ties == len(different)
    else:
        assert different == []


@pytest.mark.parametrize(
    "options",
    [
        {"add_dummy_prefix": False},
        {"user_defined_symbols": ["<s>", "</s>", "<pad>", "<EOD>"]},
        {"user_defined_symbols": ["<s>", "</s>", "<pad>", "<EOD>", "\n", "\r\n", "a b", "self."]},
        {"split_digits": False, "allow_whitespace_only_pieces": False},
    ],
    ids=["no dummy prefix", "newline no symbol", "more symbols", "digits and spaces"],
)
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_no_option_breaks_the_equality(converted: Converted, model_type: str, options: dict[str, object]) -> None:
    folder, model = converted(model_type=model_type, **options)
    lines = [*fuzz("symbols and runs", 1)[:1000], *fuzz("any unicode", 2)[:1000], *PROBES]
    assert differences(folder, model, lines) == []


@pytest.mark.parametrize("options", [{"byte_fallback": False}, {"remove_extra_whitespaces": True}], ids=str)
@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_where_sentencepiece_changes_the_text_both_change_it_alike(
    converted: Converted, model_type: str, options: dict[str, object]
) -> None:
    folder, model = converted(model_type=model_type, **options)
    lines = [*fuzz("symbols and runs", 3)[:1000], *fuzz("python", 4)[:1000]]
    assert prove(folder, model, lines, PROBES, trained_here=True).lines == 2000 + len(PROBES)


@pytest.mark.parametrize("model_type", ["unigram", "bpe", "char"])
def test_a_vocabulary_without_ascii_does_not_find_the_names_of_bytes(
    tmp_path: Path, converted: Converted, monkeypatch: pytest.MonkeyPatch, model_type: str
) -> None:
    """ "<" is unknown then: spelling "<0x0A>" out costs more than any score that keeps a piece from being found."""
    japanese = [text for text in texts() if not any(character.isascii() and character != "\n" for character in text)]
    monkeypatch.setattr("small_tokenizer.texts", lambda: japanese)
    size = 350 if model_type == "unigram" else 420
    folder, model = converted(train_small(tmp_path, model_type=model_type, vocab_size=size))
    assert "<" not in model.texts
    assert differences(folder, model, [*fuzz("symbols and runs", 5), *PROBES]) == []


def test_ties_between_runs_are_decided_alike(tmp_path: Path, converted: Converted) -> None:
    """Without exact_scores, SentencePiece's 32-bit sums order the pieces of a run of spaces at random."""
    lines = [f"{'x' * (n % 7)}{c * n}{'y' * (n % 3)}" for c in " =-*#" for n in range(1, 200)]
    folder, model = converted(model_type="unigram")
    assert differences(folder, model, lines) == []
    rounded = model.with_scores([p.score * 1.0001 if p.score < 0 else p.score for p in model.pieces])
    folder, model = converted(rounded)
    assert differences(folder, model, lines) != []


def loaded_elsewhere(folder: Path, code: str) -> Any:
    """Run code with `tokenizer` loaded from the folder, in a process that cannot import this project."""
    program = f"""
import json, sys
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert "core" not in sys.modules
print(json.dumps({code}))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, str(folder)], cwd="/", capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("beside", [None, {"model_type": "llama"}, {"model_type": "gpt2"}], ids=str)
def test_the_folder_loads_anywhere_with_all_its_parts(converted: Converted, beside: dict[str, str] | None) -> None:
    folder, model = converted(model_type="unigram")
    if beside:
        (folder / "config.json").write_text(json.dumps(beside))
    found = loaded_elsewhere(
        folder,
        """{
        "tokens": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token,
                   tokenizer.cls_token, tokenizer.sep_token, tokenizer.mask_token],
        "ids": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "special": sorted(tokenizer.all_special_tokens),
        "length": [len(tokenizer), tokenizer.vocab_size, tokenizer.model_max_length],
        "encoded": tokenizer.encode("a <EOD>\\n<s>"),
        "skipped": tokenizer.decode(tokenizer.encode("a</s><EOD>"), skip_special_tokens=True),
        "chat": tokenizer.apply_chat_template([{"role": "user", "content": "q"}], tokenize=False,
                                              add_generation_prompt=True),
        }""",
    )
    assert found["tokens"] == ["<s>", "</s>", "<pad>", "<unk>", "<CLS>", "<SEP>", "<MASK>"]
    assert found["ids"] == [1, 2, 3]
    assert found["special"] == sorted(["<unk>", "<s>", "</s>", "<pad>", "<CLS>", "<SEP>", "<EOD>", "<MASK>"])
    assert found["length"] == [1500, 1500, 128]
    assert found["encoded"] == sentencepiece.SentencePieceProcessor(model_proto=model.data).encode("a <EOD>\n<s>")
    assert found["skipped"] == "a"
    assert found["chat"] == "### Human: q\n### Assistant:"
    assert (folder / "tokenizer.model").read_bytes() == model.data


def test_offsets_point_into_the_text(converted: Converted) -> None:
    """Fine-tuning finds the tokens of an answer by them."""
    text = "### Human: 吾輩は猫?\n### Assistant:  it  is a cat</s>\n"
    for model_type in ("unigram", "bpe"):
        tokenizer: Any = AutoTokenizer.from_pretrained(converted(model_type=model_type)[0])
        encoded = tokenizer(text, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        assert sorted(offsets) == offsets
        assert offsets[-1][1] == len(text)
        end = encoded["input_ids"].index(tokenizer.eos_token_id)
        assert text[slice(*offsets[end])] == "</s>"


def test_a_mismatch_fails_with_the_first_three_shown(converted: Converted) -> None:
    folder, model = converted(model_type="bpe")
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    del document["normalizer"]["normalizers"][-1]  # no space before the text
    file.write_text(json.dumps(document))
    with pytest.raises(StageError, match=r"differs from SentencePiece on 4 of 4 lines") as caught:
        prove(folder, model, ["one", "two", "three", "four"], [], trained_here=True)
    said = str(caught.value)
    assert [word for word in ("'one'", "'two'", "'three'", "'four'") if f"the ids of {word}" in said] == [
        "'one'",
        "'two'",
        "'three'",
    ]
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.data)
    assert (
        f"SentencePiece: {processor.encode('one')} {' '.join(map(repr, processor.encode('one', return_type=str)))}"
        in said
    )
    assert "Hugging Face:  [" in said


def test_a_wrong_decoder_is_a_mismatch_too(converted: Converted) -> None:
    folder, model = converted(model_type="bpe")
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    del document["decoder"]["decoders"][-1]
    file.write_text(json.dumps(document))
    with pytest.raises(StageError, match="the decoded text of 'one'"):
        prove(folder, model, ["one"], [], trained_here=True)


def test_under_a_normaliser_held_out_lines_decide_and_probes_are_counted(converted: Converted) -> None:
    folder, model = converted(model_type="bpe", normalization="nmt_nfkc")
    plain = ["ＡＢＣ １２３", "ｶﾞｷﾞ", "\nline\n  two", "㍿"]
    proof = prove(folder, model, plain, PROBES, trained_here=True)
    assert (proof.held_out, proof.probe_mismatches) == (4, 1)
    with pytest.raises(StageError, match="differs from SentencePiece on 1 of") as caught:
        prove(folder, model, [*plain, "q\u0307\u0323"], PROBES, trained_here=True)
    assert "corpus.normalize=nfkc" in caught.value.hint


def foreign(small_model: Callable[..., bytes], model_type: str) -> bytes:
    """A model as Llama's: <s> and </s> are control pieces, which SentencePiece spells out where a text names them."""
    data = bytearray(small_model(model_type=model_type))
    for name in (b"<s>", b"</s>"):
        place = data.index(b"\n" + bytes([len(name)]) + name)
        kind = data.index(b"\x18\x04", place)
        data[kind + 1] = 3
    return bytes(data)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_control_pieces_of_a_foreign_model_end_an_answer_here(
    converted: Converted, small_model: Callable[..., bytes], model_type: str
) -> None:
    folder, model = converted(foreign(small_model, model_type))
    proof = prove(folder, model, ["plain", "with </s> inside"], PROBES, trained_here=False)
    assert proof.held_out == 1
    assert proof.left_out > 1
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.encode("a</s>")[-1] == tokenizer.eos_token_id == 2


def test_ties_of_a_foreign_unigram_model_are_counted_and_of_ours_are_not_accepted(converted: Converted) -> None:
    _, model = converted(model_type="unigram")
    folder, rounded = converted(model.with_scores([p.score * 1.0001 if p.score < 0 else p.score for p in model.pieces]))
    lines = [f"{'x' * (n % 7)}{c * n}" for c in " =-*#" for n in range(1, 200)]
    proof = prove(folder, rounded, lines, [], trained_here=False)
    assert 0 < proof.ties < len(lines)
    assert "the ids of" in proof.first_tie
    with pytest.raises(StageError):
        prove(folder, rounded, lines, [], trained_here=True)


def test_a_word_model_is_refused(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c", "b c d"] * 10),
        model_prefix=str(tmp_path / "w"),
        model_type="word",
        vocab_size=9,
        user_defined_symbols=["</s>", "<s>"],
    )
    from core.tokenizer import convert

    model = parse_model((tmp_path / "w.model").read_bytes(), "w.model")
    with pytest.raises(InputError, match=r"w\.model is a word model"):
        convert.build(model, find_special(model, "w.model"), "w.model")
