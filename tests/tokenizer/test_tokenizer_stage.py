"""The tokenizer stage as its own process: what it leaves, and how it ends when it cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import pytest
import sentencepiece
from small_tokenizer import texts, write_jsonl

from core.files import read_json
from core.tokenizer.model_file import parse_model

if TYPE_CHECKING:
    from conftest import MakeRun, RunStage


def preset(corpus: Path, **tokenizer: object) -> dict[str, Any]:
    return {
        "pretrain": {"steps": 1},
        "corpus": {"files": [str(corpus)]},
        "model": {"size": "125M", "sequence_length": 64},
        "tokenizer": {
            "vocab_size": 1200,
            "model_type": "bpe",
            "input_sentence_size": 5000,
            "num_threads": 2,
            **tokenizer,
        },
        "finetune": {"instruction_template": "質問:", "response_template": "回答:"},
    }


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_stage_trains_converts_proves_and_reports(
    make_run: MakeRun, run_stage: RunStage, tmp_path: Path, model_type: str
) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl", [*texts(), " "])
    run = make_run(preset(corpus, name="small", model_type=model_type, held_out_lines=300))
    done = run_stage(run, "tokenizer")
    assert done.returncode == 0, done.stdout
    result = read_json(run.result("tokenizer"))
    metrics = result["metrics"]
    assert metrics["vocab_size"] == 1200
    assert metrics["held_out_lines"] == 300
    assert metrics["mismatches"] == 0
    assert metrics["probe_lines"] > 40
    assert 2 < metrics["bytes_per_token"] < 6
    assert all(Path(path).exists() for path in result["outputs"].values())
    assert sorted(path.name for path in run.tokenizer.iterdir()) == ["huggingface", "small.model", "small.vocab"]
    assert [path.name for path in run.outputs.iterdir()] == ["tokenizer"]
    assert "warning: 1 unusable lines were left out" in done.stdout
    assert "trainer_spec {" in done.stdout  # SentencePiece's own log

    lines = (run.tokenizer / "small.vocab").read_text("utf-8").split("\n")
    model = parse_model((run.tokenizer / "small.model").read_bytes(), "")
    assert len(lines) == 1200 + 1
    assert lines[:9] == [
        *(f"{name}\t0" for name in ("<unk>", "<s>", "</s>", "<pad>", "<CLS>", "<SEP>", "<EOD>", "<MASK>")),
        "\\n\t0",
    ]
    assert [line.rpartition("\t")[0] for line in lines[9:-1]] == model.texts[9:]

    config = read_json(run.huggingface_tokenizer / "tokenizer_config.json")
    assert config["model_max_length"] == 64
    assert "質問:" in config["chat_template"]
    records = [orjson.loads(line) for line in run.metrics("tokenizer").read_bytes().splitlines()]
    assert records[-1]["step"] == records[-1]["total"] == corpus.stat().st_size
    assert len(records) < 100


def test_an_existing_model_is_taken_with_its_own_ids(make_run: MakeRun, run_stage: RunStage, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl")
    first = make_run(preset(corpus, model_type="unigram"))
    assert run_stage(first, "tokenizer").returncode == 0
    source = first.tokenizer / "tokenizer.model"
    mine = tmp_path / "mine.model"
    mine.write_bytes(source.read_bytes().replace(b"<pad>", b"<PAD>").replace(b"<EOD>", b"<eod>"))

    second = make_run(preset(corpus, model=str(mine), name="mine"), name="second")
    done = run_stage(second, "tokenizer")
    assert done.returncode == 0, done.stdout
    assert (second.tokenizer / "mine.model").read_bytes() == mine.read_bytes()
    assert "warning: the tokenizer has no <pad>; </s> is used instead" in done.stdout
    assert "warning: the tokenizer has no <EOD>; </s> is used instead" in done.stdout
    config = read_json(second.huggingface_tokenizer / "tokenizer_config.json")
    assert (config["pad_token"], config["eos_token"], config["additional_special_tokens"]) == ("</s>", "</s>", [])
    metrics = read_json(second.result("tokenizer"))["metrics"]
    assert metrics["held_out_lines"] > 300
    assert metrics["training_lines"] == 0

    other_size = make_run(preset(corpus, model=str(mine), vocab_size=1000), name="third")
    done = run_stage(other_size, "tokenizer")
    assert done.returncode == 64
    assert "has 1200 pieces, tokenizer.vocab_size says 1000\n  -> --set tokenizer.vocab_size=1200" in done.stdout


def ended_with(done: Any) -> str:
    """The error and its hint."""
    assert "Traceback" not in done.stdout
    return str(done.stdout[done.stdout.index("error: ") :])


@pytest.mark.parametrize(
    ("content", "tokenizer", "code", "said"),
    [
        (b"", {}, 64, "there is no text to train the tokenizer on"),
        (b'{"body": "a"}\n' * 5, {}, 64, "5 unusable, the first: "),
        (b'{"text": "only a little"}\n' * 50, {}, 64, "is more than this corpus allows"),
        (b'{"text": "a"}\n', {"model": "MISSING"}, 64, "cannot be read: No such file or directory"),
        (b'{"text": "a"}\n', {"model": "CORPUS"}, 64, "is no SentencePiece model"),
    ],
    ids=["empty", "no text key", "too large", "missing model", "no model"],
)
def test_input_that_cannot_be_used_ends_the_stage_with_64(
    make_run: MakeRun,
    run_stage: RunStage,
    tmp_path: Path,
    content: bytes,
    tokenizer: dict[str, str],
    code: int,
    said: str,
) -> None:
    corpus = tmp_path / "a.jsonl"
    corpus.write_bytes(content)
    given = {"MISSING": str(tmp_path / "missing.model"), "CORPUS": str(corpus)}
    run = make_run(preset(corpus, **{key: given[value] for key, value in tokenizer.items()}))
    done = run_stage(run, "tokenizer")
    assert done.returncode == code
    assert said in ended_with(done)
    assert not run.tokenizer.exists()


def test_a_vocabulary_smaller_than_the_alphabet_names_the_size_that_fits(
    make_run: MakeRun, run_stage: RunStage, tmp_path: Path
) -> None:
    text = "".join(chr(0x4E00 + number) for number in range(500))
    corpus = write_jsonl(tmp_path / "a.jsonl", [text] * 30)
    done = run_stage(make_run(preset(corpus, vocab_size=400, character_coverage=1.0)), "tokenizer")
    assert done.returncode == 64
    assert "--set tokenizer.vocab_size=766 or more" in ended_with(done)  # 500, a space, 265


def test_a_finished_tokenizer_survives_a_failed_attempt(make_run: MakeRun, run_stage: RunStage, tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "a.jsonl")
    run = make_run(preset(corpus))
    assert run_stage(run, "tokenizer").returncode == 0
    before = (run.tokenizer / "tokenizer.model").read_bytes()
    corpus.write_bytes(b"not text\n")
    assert run_stage(run, "tokenizer").returncode == 64
    assert (run.tokenizer / "tokenizer.model").read_bytes() == before


def test_the_vocabulary_of_the_run_gives_the_ids_that_the_trainer_reads(
    make_run: MakeRun, run_stage: RunStage, tmp_path: Path
) -> None:
    from core.errors import StageError
    from core.train.vocabulary import read_vocabulary

    run = make_run(preset(write_jsonl(tmp_path / "a.jsonl")))
    assert run_stage(run, "tokenizer").returncode == 0
    vocabulary = read_vocabulary(run.huggingface_tokenizer)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(run.tokenizer / "tokenizer.model"))
    names = ("<s>", "</s>", "<pad>", "<EOD>")
    assert [vocabulary.bos, vocabulary.eos, vocabulary.pad, vocabulary.eod] == [processor.piece_to_id(n) for n in names]
    assert vocabulary.size == 1200
    file = run.huggingface_tokenizer / "tokenizer.json"
    file.write_text(file.read_text()[:1000])
    with pytest.raises(StageError, match=r"tokenizer\.json is not a tokenizer"):
        read_vocabulary(run.huggingface_tokenizer)
