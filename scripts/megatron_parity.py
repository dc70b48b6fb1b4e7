"""Train an unmodified Megatron-DeepSpeed checkout by `llm-wizard run`, layout by layout, and compare what comes out with what it logged.

    python scripts/megatron_parity.py --checkout DIR --python PY [--work DIR] [--only gpt,llama-tp2,files]

--python is the Python of an environment that can run the checkout (on a CPU: torch, deepspeed 0.12.4 to 0.19.6, pybind11, ninja,
regex, six, einops, nltk, sentencepiece, tensorboard). Nothing is installed, and nothing of the checkout is changed but that
it compiles its index helpers. For each layout:

    run        8 steps on a few hundred kB of Python's documentation, made into token files by this tool, then converted: the
               validation loss in Megatron's log, that of the converted folder on the same samples, and their relative difference
    resume     the same training killed with SIGKILL in the middle and resumed: it goes on at its last checkpoint, with the same losses
    way back   the converted folder as Megatron's layer files again: a training that starts from them has the loss that the folder has,
               and its conversion gives the same weights

Before that, `files`: what preprocess_data.py of the checkout writes, its index corrected by `llm-wizard data check --fix`, is compared
byte for byte with what this tool's data stage writes of the same text, for several texts, tokenizers and normalisations.

Exit code 1 where a number is not met; the runs stay in --work then.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.data.indexed import files_of  # noqa: E402

TOLERANCE = 1e-4
"""Relative difference of validation losses that is allowed."""
STEPS, SAVED_EVERY, KILLED_AT = 24, 8, 11
# Without dropout: on a CPU Megatron's data loaders draw from the generator that dropout draws from, so that a resumed training drops out
# other places; and each tensor-parallel rank draws its own, also where all must have the same, so that their weights drift apart.
# Large initial weights: with 0.02 the attention of so small a model stays flat, and its loss is the same to 1e-6 without any rotary positions.
# (In bf16 they would make the rounding of the loss as large as the tolerance.)
PRESET = """
corpus: {{files: [{corpus}]}}
tokenizer: {{vocab_size: 1000}}
model: {{family: gpt2, layers: 2, hidden_size: 64, heads: 4, sequence_length: 64, dropout: 0, init_std: 0.15}}
pretrain: {{backend: megatron, precision: fp32, zero: 0, steps: {steps}, global_batch: 16, micro_batch: 2, lr: 1.0e-3, min_lr: 1.0e-4,
  warmup_steps: 2, valid_interval: {saved}, save_interval: {saved}, log_interval: 1}}
convert: {{dtype: float32}}
cluster: {{processes: 1, threads: 1}}
megatron: {{checkout: {checkout}, python: {python}, eval_iters: 2}}
"""
# Two key/value heads on each rank: with one, and several sequences in a micro-batch, the tag's attention fails where there is no flash-attn
# ("view size is not compatible", megatron/model/transformer.py, CoreAttention: the repeated head is not contiguous).
LLAMA = ("model.family=llama", "model.heads=8", "model.kv_heads=4", "model.ffn_size=128", "model.tied_embeddings=false")


@dataclass(frozen=True)
class Layout:
    """One row of the table."""

    name: str
    what: str
    settings: tuple[str, ...] = ()


LAYOUTS = (
    Layout("gpt", "GPT, fp32, 1 rank"),
    Layout("gpt-dp2", "GPT, fp32, data parallel 2", ("cluster.processes=2",)),
    Layout("gpt-pp2", "GPT, fp32, pipeline parallel 2", ("cluster.processes=2", "megatron.pipeline_parallel=2")),
    Layout("gpt-tp2", "GPT, fp32, tensor parallel 2", ("cluster.processes=2", "megatron.tensor_parallel=2")),
    Layout("gpt-bf16", "GPT, bf16, ZeRO 1, data parallel 2", ("cluster.processes=2", "pretrain.precision=bf16", "pretrain.zero=1", "model.init_std=0.02")),
    Layout("gpt-no-pipeline", "GPT, fp32, without the pipeline engine", ("megatron.pipeline_engine=false",)),
    Layout("llama", "Llama, fp32, 1 rank", LLAMA),
    Layout("llama-tp2", "Llama, fp32, tensor parallel 2", (*LLAMA, "cluster.processes=2", "megatron.tensor_parallel=2")),
)  # fmt: skip


@dataclass
class Bench:
    """Where everything lies."""

    checkout: Path
    python: str
    work: Path

    @property
    def runs(self) -> Path:
        return self.work / "runs"

    def wizard(self, *argv: str) -> subprocess.CompletedProcess[str]:
        """`llm-wizard ARGV` in the work folder."""
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        words = [sys.executable, "-m", "core.cli", *argv, "--runs-dir", str(self.runs)]
        return subprocess.run(
            words, cwd=self.work, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )

    def run(self, name: str, settings: tuple[str, ...], until: str, *options: str) -> subprocess.CompletedProcess[str]:
        """`llm-wizard run` of the small preset; what the doctor thinks of the environment is no part of this."""
        chosen = [word for one in settings for word in ("--set", one)]
        return self.wizard(
            "run", str(self.preset), "--name", name, "--from", "tokenizer", "--until", until, *chosen, *options
        )

    @property
    def preset(self) -> Path:
        return self.work / "parity.yaml"

    def stage(self, name: str, stage: str) -> dict[str, Any]:
        """What status --json says of a stage."""
        done = self.wizard("status", name, "--json")
        found: dict[str, Any] = json.loads(done.stdout)["stages"][stage]
        return found

    def metrics(self, name: str) -> list[dict[str, Any]]:
        path = self.runs / name / "stages" / "pretrain" / "metrics.jsonl"
        if not path.exists():
            return []
        records = []
        for line in path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the line that is being written
                records.append(json.loads(line))
        return records

    def log_end(self, name: str, stage: str) -> str:
        path = self.runs / name / "stages" / stage / "log.txt"
        return path.read_text(errors="replace")[-1500:] if path.exists() else "(no log)"


def losses_by_step(records: list[dict[str, Any]]) -> dict[int, float]:
    """The last loss of each step."""
    return {record["step"]: record["loss"] for record in records if record.get("loss") is not None}


def validation_by_step(records: list[dict[str, Any]]) -> dict[int, float]:
    return {record["step"]: record["val_loss"] for record in records if record.get("val_loss") is not None}


class Failed(Exception):  # noqa: N818  # a row of the table, not an error of this script
    """A row that is not met, and why."""


def check_run(bench: Bench, layout: Layout) -> tuple[float, float, float]:
    """Megatron's validation loss, the converted folder's, and their relative difference."""
    done = bench.run(layout.name, layout.settings, "convert")
    if done.returncode:
        failed = next(
            (stage for stage in ("pretrain", "convert") if _state(bench, layout.name, stage) == "failed"), "pretrain"
        )
        raise Failed(
            f"run ended with {done.returncode}\n{done.stdout[-600:]}{done.stderr[-600:]}\n{bench.log_end(layout.name, failed)}"
        )
    found = bench.stage(layout.name, "convert")["metrics"]
    if "trainer_val_loss" not in found:
        raise Failed(f"nothing to compare with: {found}")
    theirs, ours = found["trainer_val_loss"], found["padded_val_loss"]
    return theirs, ours, abs(theirs - ours) / theirs


def _state(bench: Bench, name: str, stage: str) -> str:
    try:
        return str(bench.stage(name, stage)["state"])
    except (KeyError, json.JSONDecodeError):
        return ""


def check_resume(bench: Bench, layout: Layout) -> str:
    """Kill the same training with SIGKILL in the middle, resume it, and compare with the one that was left alone."""
    name = f"{layout.name}-killed"
    done = bench.run(name, layout.settings, "pretrain", "--detach")
    if done.returncode:
        raise Failed(f"run --detach ended with {done.returncode}: {done.stderr[-600:]}")
    deadline = time.monotonic() + 300
    while not any(step >= KILLED_AT for step in losses_by_step(bench.metrics(name))):
        if time.monotonic() > deadline or _ended(bench, name):
            raise Failed(f"it did not come to step {KILLED_AT}\n{bench.log_end(name, 'pretrain')}")
        time.sleep(0.02)
    killed = kill_ranks(bench, name)
    before = max(losses_by_step(bench.metrics(name)))
    while not _ended(bench, name):
        time.sleep(0.2)
    if not killed or before >= STEPS:
        raise Failed("it had ended before it could be killed")
    first = len(bench.metrics(name))
    done = bench.wizard("resume", name)
    if done.returncode:
        raise Failed(
            f"resume ended with {done.returncode}\n{done.stdout[-600:]}{done.stderr[-600:]}\n{bench.log_end(name, 'pretrain')}"
        )
    again = losses_by_step(bench.metrics(name)[first:])
    whole = losses_by_step(bench.metrics(layout.name))
    start = min(again)
    if start != before // SAVED_EVERY * SAVED_EVERY + 1:
        raise Failed(f"killed after step {before}, it went on at step {start}")
    if max(again) != STEPS:
        raise Failed(f"it ended at step {max(again)}")
    apart = max(abs(again[step] - whole[step]) for step in again)
    ends = [validation_by_step(bench.metrics(run)).get(STEPS) for run in (layout.name, name)]
    if apart > 0 or ends[0] != ends[1]:
        raise Failed(f"resumed at step {start}: losses differ by up to {apart:.2g}, validation {ends[0]} and {ends[1]}")
    return f"killed after {before}, on at {start}, same losses"


def check_way_back(bench: Bench, layout: Layout) -> str:
    """The converted folder as Megatron's files: a step of no size from them, and its own conversion must give the same folder."""
    name, source = f"{layout.name}-back", bench.runs / layout.name / "outputs" / "pretrained"
    plan = json.loads((bench.runs / layout.name / "plan.json").read_text())
    derived = next(stage["derived"] for stage in plan["stages"] if stage["id"] == "pretrain")
    target = bench.work / f"{name}-layers"
    shutil.rmtree(target, ignore_errors=True)
    words = [
        "--tensor-parallel",
        str(derived["tensor_parallel"]),
        "--pipeline-parallel",
        str(derived["pipeline_parallel"]),
    ]
    words += ["--rows", str(derived["padded_vocab"])]
    words += ["--no-pipeline-engine"] if "megatron.pipeline_engine=false" in layout.settings else []
    made = subprocess.run(
        [sys.executable, "-m", "core.megatron.to_layers", str(source), str(target), *words],
        cwd=bench.work, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode:
        raise Failed(f"to_layers ended with {made.returncode}: {made.stdout[-300:]}{made.stderr[-900:]}")
    small = (
        "pretrain.steps=1",
        "pretrain.lr=1e-12",
        "pretrain.min_lr=0",
        "pretrain.valid_interval=1",
        "pretrain.save_interval=1",
    )
    done = bench.run(name, (*layout.settings, *small, f"megatron.start_from={target}"), "convert")
    if done.returncode:
        failed = "convert" if _state(bench, name, "convert") == "failed" else "pretrain"
        raise Failed(f"way back: run ended with {done.returncode}\n{done.stderr[-600:]}\n{bench.log_end(name, failed)}")
    from safetensors.numpy import load_file

    before, after = (
        load_file(bench.runs / run / "outputs" / "pretrained" / "model.safetensors") for run in (layout.name, name)
    )
    if before.keys() != after.keys():
        raise Failed(f"way back: other weights: {sorted(before.keys() ^ after.keys())[:4]}")
    apart = max(float(abs(before[weight] - after[weight]).max()) for weight in before)
    found = bench.stage(name, "convert")["metrics"]
    if apart > 1e-9 or found["val_loss_difference"] > TOLERANCE:
        raise Failed(f"way back: weights differ by up to {apart:.1g}, loss {found['val_loss_difference']:.1g}")
    return f"way back: weights within {apart:.0e}, loss {found['val_loss_difference']:.0e}"


def _ended(bench: Bench, name: str) -> bool:
    done = bench.wizard("status", name, "--json")
    return done.returncode == 0 and json.loads(done.stdout)["state"] not in ("running", "queued")


def kill_ranks(bench: Bench, name: str) -> int:
    """SIGKILL to every training process of this run; returns how many."""
    folder, count = str(bench.runs / name) + "/", 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            words = (process / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            if any(word.endswith("pretrain_gpt.py") for word in words) and any(folder in word for word in words):
                os.kill(int(process.name), signal.SIGKILL)
                count += 1
    return count


# --- the files


TEXTS: dict[str, list[str]] = {
    "Python's documentation": [str(topics.topics[name]) for name in sorted(topics.topics)],
    "spaces, newlines, controls": [
        "  two leading", "\tTab", "trailing  ", "a\n\n\nb", " \n x", "\n\nstart", "end\n", "a  b   c", "a\r\nb\rc", " \u2028 \u2029 sep",
        "x\u00a0y\u200bz", "\x01\x02\x7f ctrl", "\ufeffmark inside\ufeff", "\u2581 already \u2581\u2581 there",
    ],
    "Japanese and other forms": [
        "吾輩は猫である。\n名前はまだ無い。", "\u3000全角空白で始まる", "ﾊﾝｶｸ ＡＢＣ １２３ ㈱ é é", "😀🇯🇵 絵文字", "\u0301combining", "ﬁ ① ½ ℡", "ア" * 3000,
    ],
    "symbols of the tokenizer": ["a <s> b", "x</s>y", "<pad> z", "p<unk>q", "<0x41> and <0x0A>", "a<s></s>b"],
    "more than a million characters": [("word " * 30 + "\n") * 9000, "あいう" * 400_000, "x" * 1_100_000],
}  # fmt: skip
KNOWN: dict[str, list[str]] = {
    "<CLS> <SEP> <EOD> <MASK> in the text: Megatron encodes what stands between them apart, with a space before each part": [
        "a<EOD>b", "<CLS>x<SEP>y<MASK>z",
    ],
    "<PAD> <BOS> <EOS> in the text: Megatron has ids for them that the tokenizer lacks": ["a<PAD>b", "<BOS>hello<EOS>"],
    "an empty text: a document without tokens in Megatron's index, a rejected line here": ["a", "", "b"],
    "only white space, or a NUL: a document there, a rejected line here": ["a", "   ", "x\0y", "b"],
}  # fmt: skip
TOKENIZERS = {
    "unigram, identity": ("unigram", "identity"),
    "unigram, nmt_nfkc": ("unigram", "nmt_nfkc"),
    "bpe, identity": ("bpe", "identity"),
}


def compare_files(bench: Bench) -> bool:
    """Every text with every tokenizer: .bin and .idx of both tools. True where all are equal."""
    folder = bench.work / "files"
    folder.mkdir(exist_ok=True)
    corpus = folder / "corpus.jsonl"
    write_jsonl(
        corpus, [text for name in ("Python's documentation", "Japanese and other forms") for text in TEXTS[name]]
    )
    good = True
    print(f"\n{'text':<34} {'tokenizer':<20} {'documents':>9} {'tokens':>9}  .bin and .idx")
    for number, (words, (kind, normalization)) in enumerate(TOKENIZERS.items()):
        settings = (
            f"corpus.files={corpus}",
            f"tokenizer.model_type={kind}",
            f"tokenizer.normalization={normalization}",
        )
        done = bench.run(f"tokenizer-{number}", settings, "tokenizer")
        if done.returncode:
            print(f"{words}: the tokenizer could not be made\n{done.stderr[-800:]}")
            return False
        model = bench.runs / f"tokenizer-{number}" / "outputs" / "tokenizer" / "tokenizer.model"
        some = TEXTS | KNOWN if number == 0 else {"all of these": [text for texts in TEXTS.values() for text in texts]}
        for place, (name, texts) in enumerate(some.items()):
            text = folder / f"{number}-{place}.jsonl"
            write_jsonl(text, texts)
            equal, documents, tokens = compare_one(bench, text, model)
            if name in KNOWN:
                print(f"  {'byte-identical' if equal else 'differ, as is known'}: {name}", flush=True)
                continue
            good &= equal
            said = "byte-identical" if equal else "DIFFER"
            print(f"{name:<34} {words:<20} {documents:>9,} {tokens:>9,}  {said}", flush=True)
    return good


def write_jsonl(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def compare_one(bench: Bench, text: Path, model: Path) -> tuple[bool, int, int]:
    """Whether both tools write the same files of `text`; our documents and tokens."""
    stem, name = text.with_suffix(""), f"files-{text.stem}"
    words = ["--tokenizer-type", "SentencePieceTokenizer", "--tokenizer-model", str(model), "--input", str(text)]
    words += ["--output-prefix", str(stem), "--dataset-impl", "mmap", "--workers", "2", "--append-eod"]
    script = bench.checkout / "tools" / "preprocess_data.py"
    env = {
        **os.environ,
        "PYTHONPATH": f"{bench.checkout}:{ROOT / 'core' / 'megatron' / 'shim'}",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run([bench.python, str(script), *words], env=env, capture_output=True, text=True, check=False)
    theirs = stem.with_name(f"{stem.name}_text_document")
    if not all(path.exists() for path in files_of(theirs)):
        raise SystemExit(f"preprocess_data.py made no files of {text}:\n{done.stderr[-1500:]}")
    mended = bench.wizard("data", "check", str(theirs), "--tokenizer", str(model), "--fix", "--yes")
    if mended.returncode not in (0, 1):
        raise SystemExit(f"data check --fix left {theirs} as it is:\n{mended.stdout}{mended.stderr}")
    settings = (f"corpus.files={text}", f"tokenizer.model={model}", "corpus.max_rejected_share=1", "data.split=1,1,0")
    made = bench.run(name, (*settings, "pretrain.allow_short_documents=true"), "data")
    if made.returncode:
        raise SystemExit(f"the data stage made no files of {text}:\n{made.stdout[-800:]}{made.stderr[-800:]}")
    ours = bench.runs / name / "outputs" / "data" / "text_document"
    manifest = json.loads(Path(f"{ours}.manifest.json").read_text())
    equal = all(a.read_bytes() == b.read_bytes() for a, b in zip(files_of(theirs), files_of(ours), strict=True))
    return equal, manifest["documents"], manifest["tokens"]


# --- the table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", required=True, type=Path, help="the Megatron-DeepSpeed checkout")
    parser.add_argument("--python", required=True, help="the Python of its environment")
    parser.add_argument("--work", type=Path, help="folder for runs and files; a temporary one when not given")
    parser.add_argument(
        "--only",
        default="",
        help=f"files and names of layouts, comma-separated: {', '.join(one.name for one in LAYOUTS)}",
    )
    options = parser.parse_args()
    work = (options.work or Path(tempfile.mkdtemp(prefix="megatron-parity-"))).resolve()
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.checkout.resolve(), options.python, work)
    only = [word for word in options.only.split(",") if word] or ["files", *(one.name for one in LAYOUTS)]
    if unknown := set(only) - {"files", *(one.name for one in LAYOUTS)}:
        parser.error(f"--only {', '.join(sorted(unknown))}: there is no such layout")
    corpus = work / "corpus.jsonl"
    write_jsonl(corpus, TEXTS["Python's documentation"])
    bench.preset.write_text(
        PRESET.format(corpus=corpus, steps=STEPS, saved=SAVED_EVERY, checkout=bench.checkout, python=bench.python)
    )
    good = compare_files(bench) if "files" in only else True
    chosen = [layout for layout in LAYOUTS if layout.name in only]
    if chosen:
        print(f"\n{'layout':<38} {'Megatron':>10} {'converted':>10} {'relative':>9}  resume; way back")
    for layout in chosen:
        good &= show(bench, layout)
    if good and options.work is None:
        shutil.rmtree(work)
    else:
        print(f"the runs are in {work}")
    return 0 if good else 1


def show(bench: Bench, layout: Layout) -> bool:
    """One row; what is wrong stands below it."""
    try:
        theirs, ours, apart = check_run(bench, layout)
    except Failed as reason:
        print(f"{layout.what:<38} FAILED: {reason}", flush=True)
        return False
    good, words = apart <= TOLERANCE, []
    for check in (check_resume, check_way_back):
        try:
            words.append(check(bench, layout))
        except Failed as reason:
            good = False
            words.append(f"FAILED: {reason}")
    print(f"{layout.what:<38} {theirs:>10.6f} {ours:>10.6f} {apart:>9.1e}  {'; '.join(words)}", flush=True)
    return good


if __name__ == "__main__":
    sys.exit(main())
