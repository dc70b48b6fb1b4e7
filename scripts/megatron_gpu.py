"""Trains an unmodified Megatron-DeepSpeed checkout for a few steps on one GPU without apex or flash-attn, layout by layout.

    python scripts/megatron_gpu.py --checkout DIR --out DIR [--only gpt-bf16,llama-bf16]

The Python that runs it is the training Python: torch with CUDA, DeepSpeed 0.12.4 to 0.19.6, pybind11, ninja, regex, six, einops,
sentencepiece, tensorboard, numpy; nvcc and g++. Nothing is installed. What is missing of apex, torchvision and Pillow is taken from
core/megatron/shim. The token files are synthetic: each token has four possible successors, so that the loss can fall far below that
of the first step. Each layout is a process group of its own with a time limit; one that fails does not stop the others. The table at
the end has, for each layout, the losses, milliseconds an iteration, tokens a second and TFLOPs as Megatron prints them, and the most
GPU memory. --out keeps one log a layout and table.txt.

With --run the tool itself follows: `llm-wizard run` with the megatron backend on Python's documentation, from the tokenizer to the
converted model, whose validation loss it compares with the one in Megatron's log. That needs this tool's own packages, too (in the Python
of --tool, where it is another).

With --device cpu the same is done with tiny models, to try this script.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from core.data.indexed import write_indexed
from core.megatron.command import Training, training_args
from core.megatron.ds_config import ds_config, ds_config_name

SHIM = Path(__file__).resolve().parent.parent / "core" / "megatron" / "shim"
PIECES, SUCCESSORS = 1000, 4
LLAMA = [
    "--no-query-key-layer-scaling", "--attention-dropout", "0", "--hidden-dropout", "0", "--use-rotary-position-embeddings",
    "--untie-embeddings-and-output-weights", "--swiglu", "--normalization", "rmsnorm", "--disable-bias-linear",
]  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What is trained. `seconds` is its time limit."""

    name: str
    precision: str
    zero: int
    layers: int = 12
    hidden_size: int = 768
    heads: int = 12
    micro_batch: int = 4
    steps: int = 40
    pipeline_engine: bool = True
    llama: bool = False
    ffn_size: int = 0
    kv_heads: int = 0
    seconds: int = 180


LAYOUTS = (
    Layout("gpt-bf16-zero1", "bf16", 1),
    Layout("llama-bf16-zero1", "bf16", 1, llama=True, ffn_size=2048, kv_heads=4),
    Layout("gpt-bf16-zero2-no-pipeline-engine", "bf16", 2, steps=20, pipeline_engine=False),
    Layout("gpt-fp16-zero1", "fp16", 1, steps=20),
    Layout("gpt-fp16-zero0", "fp16", 0, steps=20),
    Layout("gpt-1.3b-bf16-zero1", "bf16", 1, layers=24, hidden_size=2048, heads=16, micro_batch=2, steps=20),
)


def main() -> None:
    options = read_options()
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    on_cpu = options.device == "cpu"
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    work = Path(options.work).resolve()
    work.mkdir(parents=True, exist_ok=True)
    checkout = Path(options.checkout).resolve()
    say_versions(checkout, work, on_cpu)
    build_helpers(checkout)
    sequence = 64 if on_cpu else 2048
    tokenizer, prefix = make_data(work, documents=400 if on_cpu else 8000, length=200 if on_cpu else 1000)
    chosen = [layout for layout in LAYOUTS if any(word in layout.name for word in options.only.split(","))]
    rows = [ROW.format(*HEADER)]
    for layout in chosen:
        if on_cpu:
            layout = replace(layout, layers=2, hidden_size=64, heads=4, ffn_size=192 if layout.llama else 0, kv_heads=2 if layout.llama else 0, steps=6)  # fmt: skip
        row = ROW.format(*train(layout, checkout, work, out, tokenizer, prefix, sequence, on_cpu))
        print(row, flush=True)
        rows.append(row)
    table = "\n".join(rows)
    (out / "table.txt").write_text(table + "\n")
    print(f"\n{table}", flush=True)
    if options.run:
        run_the_tool(options.tool, checkout, work, out, on_cpu)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkout", required=True, help="the Megatron-DeepSpeed checkout; its helpers are built in place"
    )
    parser.add_argument("--out", required=True, help="folder for logs and the table")
    parser.add_argument("--work", default="/tmp/megatron_gpu", help="folder for data and checkpoints")
    parser.add_argument("--only", default="", help="parts of names of layouts, comma-separated; all when not given")
    parser.add_argument("--run", action="store_true", help="then run this tool with the megatron backend")
    parser.add_argument("--tool", default=sys.executable, metavar="PYTHON", help="with --run: the Python of this tool")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    return parser.parse_args()


def environment(checkout: Path, work: Path, on_cpu: bool) -> dict[str, str]:
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, (str(checkout), str(SHIM), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
        "TORCH_EXTENSIONS_DIR": str(work / "torch_extensions"),
        "DS_ACCELERATOR": "cpu" if on_cpu else "cuda",
        "WANDB_DISABLED": "true",
    }
    return env | ({"OMP_NUM_THREADS": "2"} if on_cpu else {})


def say_versions(checkout: Path, work: Path, on_cpu: bool) -> None:
    """Imports what a training imports, and says of which packages the stand-ins were used."""
    code = """
import importlib.metadata as m, platform, sys, warnings
warnings.simplefilter("ignore")
import torch, megatron.training, megatron.model, megatron.optimizer
for name in ("torch", "deepspeed", "transformers", "torchvision", "pillow", "apex", "flash-attn", "numpy", "pybind11", "sentencepiece"):
    try: print(f"{name} {m.version(name)}", end="; ")
    except m.PackageNotFoundError: print(f"no {name}", end="; ")
print("Python", platform.python_version())
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    print(p.name, f"{p.total_memory / 2**30:.0f} GiB, CUDA", torch.version.cuda, "arch", torch.cuda.get_arch_list())
used = {n.partition(".")[0] for n, x in sys.modules.items() if "/shim/stand_ins/" in str(getattr(x, "__file__", ""))}
print("stand-ins used:", ", ".join(sorted(used)) or "none")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(checkout, work, on_cpu),
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if not line.startswith("[")]
    print("\n".join(lines), flush=True)
    if done.returncode:
        print("the import of Megatron failed:", *done.stderr.splitlines()[-25:], sep="\n  ", flush=True)
    print("nvcc:", shutil.which("nvcc") or "none", "| CUDA_HOME:", os.environ.get("CUDA_HOME", "not set"), flush=True)


def build_helpers(checkout: Path) -> None:
    """The data helpers for this very Python: the checkout's Makefile asks whatever python3-config is on PATH."""
    target = checkout / "megatron" / "data" / f"helpers{sysconfig.get_config_var('EXT_SUFFIX')}"
    if target.exists():
        return
    started = time.monotonic()
    includes = subprocess.check_output([sys.executable, "-m", "pybind11", "--includes"], text=True).split()
    source = target.with_name("helpers.cpp")
    subprocess.run(
        ["g++", "-O3", "-Wall", "-shared", "-std=c++17", "-fPIC", *includes, str(source), "-o", str(target)], check=True
    )
    print(f"built {target.name} in {time.monotonic() - started:.0f} s", flush=True)


def make_data(work: Path, documents: int, length: int) -> tuple[Path, Path]:
    """A sentencepiece model of about PIECES pieces, and token files of a random walk over its ids."""
    import sentencepiece

    tokenizer, prefix = work / "tokenizer.model", work / "data"
    random = np.random.default_rng(1234)
    if not tokenizer.exists():
        syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
        words = ["".join(random.choice(syllables, 3)) for _ in range(3000)]
        text = work / "text.txt"
        text.write_text("\n".join(" ".join(random.choice(words, 12)) for _ in range(5000)) + "\n")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(tokenizer.with_suffix("")), vocab_size=PIECES, hard_vocab_limit=False,
            byte_fallback=True, minloglevel=2,
        )  # fmt: skip
    size = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).vocab_size()
    successors = random.integers(3, size, (size, SUCCESSORS))
    tokens = np.empty((documents, length), np.uint16)
    tokens[:, 0] = random.integers(3, size, documents)
    for at in range(1, length):
        tokens[:, at] = successors[tokens[:, at - 1], random.integers(0, SUCCESSORS, documents)]
    write_indexed(prefix, list(tokens), np.uint16)
    shutil.rmtree(work / "index-cache", ignore_errors=True)
    print(
        f"{documents * length} tokens of {size} pieces; the loss goes from {np.log(size):.2f} towards {np.log(4):.2f}"
    )
    return tokenizer, prefix


def training_of(layout: Layout, work: Path, tokenizer: Path, prefix: Path, sequence: int, on_cpu: bool) -> Training:
    batch = layout.micro_batch * 4
    tokens = layout.steps * batch * sequence
    # DeepSpeed from 0.19 keeps the loss scale where Megatron does not find it, and TensorBoard then gets None.
    own = ["--bf16"] if layout.precision == "bf16" else ["--no-log-loss-scale-to-tensorboard"]
    own += ["--no-masked-softmax-fusion", "--no-gradient-accumulation-fusion"]
    if layout.llama:
        own = [*LLAMA, "--num-key-value-heads", str(layout.kv_heads), "--ffn-hidden-size", str(layout.ffn_size), *own]
    if not on_cpu:
        own += ["--make-vocab-size-divisible-by", "32128"]  # the original's embedding, for speeds that can be compared
    return Training(
        family="llama" if layout.llama else "gpt", size=layout.name, layers=layout.layers, hidden_size=layout.hidden_size,
        heads=layout.heads, sequence_length=sequence, init_std=0.02, global_batch=batch, micro_batch=layout.micro_batch,
        lr=6e-4, min_lr=1e-6, decay_style="cosine", tokens=tokens, warmup_tokens=tokens // 10, samples=layout.steps * batch,
        weight_decay=0.1, clip_grad=1.0, beta1=0.9, beta2=0.95, seed=1234, tensor_parallel=1, pipeline_parallel=1,
        pipeline_engine=layout.pipeline_engine, zero=layout.zero, processes=1, fp16=layout.precision == "fp16",
        flash_attention=False, gradient_checkpointing=False, log_optimizer_state=False, log_interval=max(1, layout.steps // 8),
        eval_interval=layout.steps, eval_iters=2, save_interval=layout.steps, exit_minutes=30_000_000, split="949,50,1",
        data=(str(prefix),), tokenizer=str(tokenizer), output=str(work / layout.name),
        ds_config_name=ds_config_name(batch, layout.micro_batch, max(1, layout.steps // 8), layout.zero), start_from="", started="now",
        host="here", wandb=(), own=tuple(own),
    )  # fmt: skip


HEADER = (
    "layout",
    "result",
    "first loss",
    "last loss",
    "valid loss",
    "ms/iter",
    "tokens/s",
    "TFLOPs",
    "peak GiB",
    "wall s",
)
ROW = "{:<34} {:<10} {:>10} {:>9} {:>10} {:>9} {:>9} {:>7} {:>8} {:>7}"


def train(
    layout: Layout, checkout: Path, work: Path, out: Path, tokenizer: Path, prefix: Path, sequence: int, on_cpu: bool
) -> tuple[str, ...]:
    """One row of the table."""
    print(f"\n== {layout}", flush=True)
    training = training_of(layout, work, tokenizer, prefix, sequence, on_cpu)
    shutil.rmtree(training.output, ignore_errors=True)
    config = Path(training.ds_config_file)
    config.parent.mkdir(parents=True)
    document = ds_config(
        training.global_batch, training.micro_batch, training.log_interval, layout.zero, layout.precision, 1.0
    )
    config.write_text(json.dumps(document))
    argv = [
        sys.executable, "-m", "deepspeed.launcher.runner", "--master_port", "29617", "--num_gpus", "1",
        str(checkout / "pretrain_gpt.py"), *training_args(training),
    ]  # fmt: skip
    log = out / f"{layout.name}.log"
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(
            argv, cwd=work, env=environment(checkout, work, on_cpu), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )  # fmt: skip
        try:
            code = process.wait(layout.seconds)
            result = "ok" if code == 0 else f"exit {code}"
        except subprocess.TimeoutExpired:
            result = f"> {layout.seconds} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    wall = time.monotonic() - started
    text = log.read_text(errors="replace")
    shown = re.compile(
        r"^ iteration |validation loss at|memory \(MB\)|successfully (saved|loaded)|OVERFLOW|number of parameters"
    )
    print("\n".join(line[:360] for line in text.splitlines() if shown.search(line)), flush=True)
    if result != "ok":
        print("--- the end of its log:", *text.splitlines()[-40:], sep="\n", flush=True)
    losses = re.findall(r"lm loss: (\S+)", text)
    valid = re.findall(
        r"validation loss at iteration \d+ on .*?validation set \| lm loss value: (\S+)", text
    ) or re.findall(r"validation loss at iteration \d+ \| lm loss value: (\S+)", text)
    times = [float(found) for found in re.findall(r"elapsed time per iteration \(ms\): (\S+)", text)]
    speeds = [float(found) for found in re.findall(r"\(tgs\): (\S+)", text)]
    flops = [float(found) for found in re.findall(r"TFLOPs: (\S+)", text)]
    peak = [float(found) for found in re.findall(r"max allocated: (\S+)", text)]

    def steady(values: list[float], digits: int) -> str:
        """The median of all but the first interval, which starts CUDA and compiles, and the last, which has the validation in it."""
        middle = values[1:-1] or values
        return f"{float(np.median(middle)):.{digits}f}" if middle else "-"

    return (
        layout.name,
        result,
        f"{float(losses[0]):.4f}" if losses else "-",
        f"{float(losses[-1]):.4f}" if losses else "-",
        f"{float(valid[-1]):.6f}" if valid else "-",
        steady(times, 1),
        steady(speeds, 0),
        steady(flops, 1),
        f"{max(peak) / 1024:.1f}" if peak else "-",
        f"{wall:.0f}",
    )


def run_the_tool(python: str, checkout: Path, work: Path, out: Path, on_cpu: bool) -> None:
    """Tokenizer, data, pretraining by the checkout, conversion, under the supervisor; what each stage measured is printed."""
    from pydoc_data import topics

    corpus, preset, runs = work / "corpus.jsonl", work / "megatron.yaml", work / "runs"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in topics.topics.values()))
    shape = (
        "layers: 2, hidden_size: 64, heads: 4, sequence_length: 64" if on_cpu else "size: 125M, sequence_length: 1024"
    )
    preset.write_text(
        f"corpus: {{files: [{corpus}]}}\ntokenizer: {{vocab_size: 2000}}\nmodel: {{family: gpt2, dropout: 0, {shape}}}\n"
        "pretrain: {backend: megatron, precision: bf16, steps: 40, global_batch: 16, micro_batch: 4, lr: 6.0e-4, min_lr: 1.0e-6, "
        "warmup_steps: 4, valid_interval: 20, save_interval: 20, log_interval: 5}\n"
        f"cluster: {{python: {python}}}\n"
        f"megatron: {{checkout: {checkout}, python: {sys.executable}, apex: shim, fused_kernels: false, flash_attention: false, "
        "eval_iters: 2}\n"
    )
    shutil.rmtree(runs, ignore_errors=True)
    argv = [python, "-m", "core.cli", "--runs-dir", str(runs), "run", str(preset), "--name", "gpu"]
    argv += ["--from", "corpus", "--until", "convert"]
    root = Path(__file__).resolve().parent.parent
    print("\n==", " ".join(argv), flush=True)
    done = subprocess.run(
        argv, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, timeout=400, check=False
    )  # fmt: skip
    print(done.stdout[-4000:], done.stderr[-3000:], f"exit code {done.returncode}", sep="\n", flush=True)
    for result in sorted(runs.glob("gpu/stages/*/result.json")):
        print(result.parent.name, json.dumps(json.loads(result.read_text()).get("metrics")), flush=True)
    log = runs / "gpu" / "stages" / "pretrain" / "log.txt"
    if log.is_file():
        shutil.copy(log, out / "run-pretrain.log")
        if done.returncode:
            print("--- the end of the training's log:", *log.read_text(errors="replace").splitlines()[-40:], sep="\n")


if __name__ == "__main__":
    main()
