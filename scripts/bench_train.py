"""Training speed of a named model on this machine, through the engine that real runs use; random tokens.

    python scripts/bench_train.py --family llama --size 1.3B --micro-batch 8,16 --sequence 2048 --compile model,off

Every combination of the comma-separated values is one row: 8 warm-up steps (compilation among them), then 20 timed ones,
each with forward, backward, clipping and AdamW. FLOPs per token are 6 N + 12 L d T (core/model.py).
"""

from __future__ import annotations

import argparse
import gc
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import transformers

from core.model import ModelSection
from core.train.metrics import peak_flops
from core.train.model import model_config
from core.train.schedule import Schedule
from core.train.settings import TrainSettings
from core.train.torch_engine import TorchEngine
from core.train.vocabulary import Vocabulary

COLUMNS = "{:<28} {:>5} {:>6} {:>7} {:>9} {:>11} {:>8} {:>7} {:>9} {:>8} {:>8}"


def main() -> None:
    options = read_options()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else "-"
    print(f"{name}, torch {torch.__version__}, transformers {transformers.__version__}, cuDNN {cudnn}", flush=True)
    print(
        COLUMNS.format(
            "model", "B", "T", "compile", "residual", "tokens/s", "TFLOP/s", "MFU", "peak GiB", "start s", "loss"
        )
    )
    rows = itertools.product(options.micro_batch, options.compile, options.residual)
    for micro_batch, compile_unit, residual in rows:
        try:
            measure(options, device, micro_batch, compile_unit, residual)
        except torch.cuda.OutOfMemoryError:
            print(f"B {micro_batch}, compile {compile_unit}, residual {residual}: out of GPU memory", flush=True)
        gc.collect()
        torch.compiler.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = {"type": lambda text: text.split(",")}
    parser.add_argument("--family", choices=["llama", "gpt2"], default="llama")
    parser.add_argument("--size", help="a named size (125M, 1.3B, ...); or give the three dimensions")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--heads", type=int)
    parser.add_argument("--ffn", type=int)
    parser.add_argument("--untied", action="store_true", help="an output projection of its own")
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--sequence", type=int, default=2048)
    parser.add_argument("--micro-batch", type=lambda text: [int(part) for part in text.split(",")], default=[8])
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--compile", default=["model"], help="model, layers, off", **words)
    parser.add_argument(
        "--residual", default=["bf16"], help="bf16, fp32 (of the residual stream under autocast)", **words
    )
    parser.add_argument(
        "--precision", choices=["bf16", "fp32"], default="bf16" if torch.cuda.is_available() else "fp32"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--profile", action="store_true", help="print where the time of three more steps goes")
    return parser.parse_args()


def measure(options: argparse.Namespace, device: torch.device, micro_batch: int, unit: str, residual: str) -> None:
    """Build the engine, time it, print one row."""
    started = time.perf_counter()
    section = ModelSection(
        family=options.family,
        size=options.size,
        layers=options.layers,
        hidden_size=options.hidden,
        heads=options.heads,
        ffn_size=options.ffn,
        sequence_length=options.sequence,
        tied_embeddings=not options.untied,
    )
    vocabulary = Vocabulary(size=options.vocab, bos=1, eos=2, pad=3, eod=6)
    rows = vocabulary.padded(section.pad_vocab_to)
    settings = TrainSettings(
        steps=1000,
        micro_batch=micro_batch,
        accumulation=options.accumulation,
        world_size=1,
        sequence_length=options.sequence,
        vocab_size=options.vocab,
        rows=rows,
        precision=options.precision,
        zero=0,
        seed=1,
        schedule=Schedule("cosine", 3e-4, 1e-6, 10, 1000),
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.95,
        adam_eps=1e-8,
        clip_grad=1.0,
        gradient_checkpointing=False,
        compile=unit,  # type: ignore[arg-type]  # a word of the command line
        residual_in_fp32=residual == "fp32",
        flops_per_token=section.shape().flops_per_token(rows),
    )
    engine = TorchEngine(model_config(section, vocabulary, rows), settings, device)
    random = np.random.default_rng(1)
    batches = [random.integers(0, options.vocab, (micro_batch, options.sequence + 1)) for _ in range(4)]

    def step(number: int) -> torch.Tensor:
        for micro in range(options.accumulation):
            loss = engine.accumulate(batches[(number + micro) % len(batches)])
        engine.step(settings.schedule.lr(number + 1))
        return loss

    for number in range(options.warmup):
        step(number)
    wait(device)
    ready = time.perf_counter()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for number in range(options.warmup, options.warmup + options.steps):
        loss = step(number)
    wait(device)
    speed = options.steps * settings.tokens_per_step / (time.perf_counter() - ready)
    flops = speed * settings.flops_per_token
    peak = peak_flops(torch.cuda.get_device_name(device) if device.type == "cuda" else None)
    parameters = sum(weight.numel() for weight in engine.model.parameters())
    print(
        COLUMNS.format(
            f"{options.family} {parameters / 1e6:,.0f}M",
            micro_batch,
            options.sequence,
            unit,
            residual if options.precision == "bf16" else "fp32",
            f"{speed:,.0f}",
            f"{flops / 1e12:.1f}",
            f"{flops / peak:.1%}" if peak else "-",
            f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device.type == "cuda" else "-",
            f"{ready - started:.0f}",
            f"{loss.item():.4f}",
        ),
        flush=True,
    )
    if options.profile:
        profile(step, device)


def profile(step: object, device: torch.device) -> None:
    """Where the time of three steps goes, by kernel."""
    with torch.profiler.profile() as profiler:
        for number in range(3):
            step(number)  # type: ignore[operator]
        wait(device)
    order = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=90), flush=True)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
