"""What a log of Megatron-DeepSpeed says: pure parsing, from the bytes of the log to facts.

The lines come from the ranks of several nodes, through launchers that put something before them (`node2: ` of pdsh and of our own
launchers, `[rank0]: ` of torch), and two ranks that print at once write into one line, as `python -u` writes the text and the end
of the line separately. So a fact is looked for anywhere in a line, a line may hold several, and a line that was cut by the end of
its process holds none. The formats are those of print statements in megatron/training.py, megatron/checkpointing.py and
megatron/initialize.py of the tags that the original pipeline names, and of deepspeed 0.12 and 0.19.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Iteration:
    """The line of a logged step, printed by the last rank. Speed and loss are means since the line before."""

    step: int
    shown_total: int
    """train_samples // global batch. The training ends at --train-tokens, which may be much earlier."""
    samples: int
    tokens: int
    step_ms: float
    """Includes what validations in between took."""
    lr: float
    global_batch: int
    loss: float | None
    """NaN where the line has none: it is printed only if it is above zero. None where the line is damaged there."""
    losses: Mapping[str, float]
    """All losses by name: "lm loss", with experts also "moe loss"."""
    tokens_per_gpu_s: float
    samples_per_s: float
    tflops: float
    """Per GPU."""
    skipped: int
    """Steps since the line before that were left out because of overflow; with the pipeline engine always 0."""
    nan: int
    """Likewise steps without a finite loss."""
    values: Mapping[str, float]
    """The optional fields: "loss scale", "grad norm", "num zeros", "params norm", "curriculum seqlen", "random ltd reserved length",
    "actual seqlen"."""


@dataclass(frozen=True)
class Validation:
    """A validation after `step`; `over` is the split that it was over. A loss may be NaN."""

    step: int
    loss: float
    over: Literal["validation", "test"]
    final: bool
    """The one after the training, on a sample of its own."""


@dataclass(frozen=True)
class PipeStep:
    """The pipeline engine's own line, printed by rank 0; `loss` is that of this one step."""

    step: int
    loss: float
    step_s: float
    samples_per_s: float


@dataclass(frozen=True)
class EngineStep:
    """DeepSpeed's own line of older releases; `skipped` counts from the start of the run."""

    step: int
    skipped: int


@dataclass(frozen=True)
class Overflow:
    """A step that fp16's loss scaling leaves out. `scale` is the one that was too high, `reduced_to` the next, if it changes."""

    rank: int
    scale: float
    reduced_to: float | None


@dataclass(frozen=True)
class Saving:
    """A checkpoint is being written."""

    step: int


@dataclass(frozen=True)
class Saved:
    """All ranks say that their part of a checkpoint is written."""

    step: int


@dataclass(frozen=True)
class Loaded:
    """The training goes on from this step; None: it starts from random weights."""

    step: int | None


@dataclass(frozen=True)
class Layout:
    """What the ranks take themselves for."""

    world_size: int
    data_parallel: int
    tensor_parallel: int
    pipeline_parallel: int


@dataclass(frozen=True)
class Vocabulary:
    """Pieces of the tokenizer with those that Megatron added, and rows of the embedding."""

    size: int
    padded: int


@dataclass(frozen=True)
class Parameters:
    """Parameters on one model-parallel rank."""

    tensor_rank: int
    pipeline_rank: int
    count: int


@dataclass(frozen=True)
class Memory:
    """A GPU's memory after the first logged step, in MB of 2^20 bytes."""

    rank: int
    max_allocated: float
    max_reserved: float


@dataclass(frozen=True)
class Phase:
    """What is being done: see PHASES. `seconds` are told where something has ended."""

    name: str
    seconds: float | None = None


@dataclass(frozen=True)
class Exiting:
    """The training ends by itself before its last step; `why` in Megatron's words."""

    why: str


@dataclass(frozen=True)
class RankFailed:
    """How the rank ended for which DeepSpeed's launcher ended the others: its exit code, or minus the signal."""

    code: int


@dataclass(frozen=True)
class Tracked:
    """Where W&B keeps the run: an address, or a folder."""

    where: str


Fact = (
    Iteration | Validation | PipeStep | EngineStep | Overflow | Saving | Saved | Loaded | Layout | Vocabulary | Parameters
    | Memory | Phase | Exiting | RankFailed | Tracked
)  # fmt: skip

PHASES = {
    "> building SentencePieceTokenizer tokenizer": "tokenizer",
    "> initializing torch distributed": "distributed",
    "> compiling dataset index builder": "index-builder",
    ">>> done with dataset index builder": "index-builder-done",
    "> compiling and loading fused kernels": "fused-kernels",
    ">>> done with compiling and loading fused kernels": "fused-kernels-done",
    "[after megatron is initialized]": "initialized",
    "building GPT model": "model",
    "rate scheduler are built]": "built",
    "could not find index map files, building the indices": "sample-index",
    "[after dataloaders are built]": "data",
    "done with setup": "setup-done",
    "[before the start of training step]": "training",
    "[after training is done]": "trained",
}
"""The words by which the begin or the end of a phase is known, and its name."""

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|inf|nan|INF|NAN)"
_ITERATION = re.compile(r"iteration +(\d+)/ *(\d+) \|(?= consumed samples:)")
_FIELD = re.compile(rf" ([A-Za-z][\w ]*(?: \(\w+\))?): +({_NUMBER}) \|")
_OPTIONAL = (
    "loss scale", "grad norm", "num zeros", "params norm", "curriculum seqlen", "random ltd reserved length", "actual seqlen",
)  # fmt: skip
_NEEDED = (
    "consumed samples", "consumed tokens", "elapsed time per iteration (ms)", "learning rate", "global batch size",
    "number of skipped iterations", "number of nan iterations", "samples per second", "tokens per gpu per second (tgs)", "TFLOPs",
)  # fmt: skip
_WHOLE = (
    "consumed samples",
    "consumed tokens",
    "global batch size",
    "number of skipped iterations",
    "number of nan iterations",
)
_VALIDATION = re.compile(
    r"validation loss at iteration (\d+)(?: on \d+-sample draw from (validation|test) set)? \| "
    rf"lm loss value: ({_NUMBER}) \| lm loss PPL: {_NUMBER} \|"
)
_PIPE_STEP = re.compile(rf"steps: (\d+) loss: ({_NUMBER}) iter time \(s\): ({_NUMBER}) samples/sec: (\d+\.\d{{3}})")
_ENGINE_STEP = re.compile(r"\bstep=(\d+), skipped=(\d+), ")
_OVERFLOW = re.compile(
    rf"OVERFLOW! Rank (\d+) Skipping step\. Attempted loss scale: ({_NUMBER}), (?:reducing to ({_NUMBER})|but hysteresis)"
)
_SAVING = re.compile(r"\bsaving checkpoint at iteration +(\d+) to ")
_SAVED = re.compile(r"successfully saved checkpoint at iteration +(\d+) to ")
_LOADED = re.compile(r"successfully loaded checkpoint from .{1,4096}? at iteration (\d+)")
_FROM_RANDOM = re.compile(r"will not load any checkpoints and will start from random")
_LAYOUT = re.compile(
    r"using world size: (\d+), data-parallel-size: (\d+), (?:sequence-parallel size: \d+, )?"
    r"tensor-model-parallel size: (\d+), pipeline-model-parallel size: (\d+)"
)
_VOCABULARY = re.compile(r"padded vocab \(size: (\d+)\) with \d+ dummy tokens \(new size: (\d+)\)")
_PARAMETERS = re.compile(r"number of parameters on \(tensor, pipeline\) model parallel rank \((\d+), (\d+)\): (\d+)")
_MEMORY = re.compile(
    rf"\[Rank (\d+)\] \(after \d+ iterations\) memory \(MB\) \| allocated: {_NUMBER} \| max allocated: ({_NUMBER}) "
    rf"\| reserved: {_NUMBER} \| max reserved: ({_NUMBER})"
)
_SECONDS = re.compile(r"\. Compilation time: ([\d.]+) seconds")
_EXITING = re.compile(r"\[(exiting program (?:after [^\]]{1,200}|at iteration \d+))\]")
_RANK_FAILED = re.compile(r"exits with return code = (-?\d+)")
_VIEWED = re.compile(r"View run (?:.{1,1000} )?at:? +(?:\x1b\[[\d;]*m)*(https?://[^\s\x1b]+)")
_SAVED_LOCALLY = re.compile(r"saved locally in (?:\x1b\[[\d;]*m)*([^\s\x1b]+)")

_Kind = tuple[bytes, "re.Pattern[str]", "Callable[[re.Match[str]], Fact | None]"]
"""A kind of line: words that every such line has, its format, and what is made of it."""


def facts_in(data: bytes) -> list[Fact]:
    """The facts in these lines of a log, in their order.

    Nearly all of a long log are lines without one: they are passed over by searching the bytes for the words of each kind.
    """
    found: list[tuple[int, Fact]] = []
    for words, pattern, make in _KINDS:
        place = data.find(words)
        while place >= 0:
            begin, end = data.rfind(b"\n", 0, place) + 1, data.find(b"\n", place)
            end = len(data) if end < 0 else end
            for match in pattern.finditer(data[begin:end].decode("utf-8", "replace")):
                fact = make(match)
                if fact is not None:
                    found.append((begin + match.start(), fact))
            place = data.find(words, end)
    return [fact for _, fact in sorted(found, key=lambda pair: pair[0])]


def _iteration(match: re.Match[str]) -> Iteration | None:
    """The line from `iteration` on; None where it ends before its last field, or another rank has written over one that counts."""
    line = match.string
    another = _ITERATION.search(line, match.end())
    part = line[match.end() : another.start() if another else len(line)]
    fields = {field[1]: float(field[2]) for field in _FIELD.finditer(part)}
    if any(name not in fields for name in _NEEDED) or not all(math.isfinite(fields[name]) for name in _WHOLE):
        return None
    losses = {name: value for name, value in fields.items() if name not in _NEEDED and name not in _OPTIONAL}
    loss = losses.get("lm loss")
    if loss is None and not _FIELD.sub("", part[: part.index(" TFLOPs:")]).strip():
        loss = math.nan  # whole, and without a loss
    return Iteration(
        step=int(match[1]),
        shown_total=int(match[2]),
        samples=int(fields["consumed samples"]),
        tokens=int(fields["consumed tokens"]),
        step_ms=fields["elapsed time per iteration (ms)"],
        lr=fields["learning rate"],
        global_batch=int(fields["global batch size"]),
        loss=loss,
        losses=losses,
        tokens_per_gpu_s=fields["tokens per gpu per second (tgs)"],
        samples_per_s=fields["samples per second"],
        tflops=fields["TFLOPs"],
        skipped=int(fields["number of skipped iterations"]),
        nan=int(fields["number of nan iterations"]),
        values={name: fields[name] for name in _OPTIONAL if name in fields},
    )


def _validation(match: re.Match[str]) -> Validation:
    over: Literal["validation", "test"] = "test" if match[2] == "test" else "validation"
    return Validation(int(match[1]), float(match[3]), over, final=match[2] is not None)


def _phase_of(words: str) -> _Kind:
    def make(match: re.Match[str]) -> Fact:
        seconds = _SECONDS.match(match.string, match.end())
        return Phase(PHASES[words], float(seconds[1]) if seconds else None)

    return words.encode(), re.compile(re.escape(words)), make


def _overflow(match: re.Match[str]) -> Overflow:
    return Overflow(int(match[1]), float(match[2]), float(match[3]) if match[3] else None)


_KINDS: tuple[_Kind, ...] = (
    (b"consumed samples:", _ITERATION, _iteration),
    (b"validation loss at ", _VALIDATION, _validation),
    (
        b"iter time (s):",
        _PIPE_STEP,
        lambda match: PipeStep(int(match[1]), float(match[2]), float(match[3]), float(match[4])),
    ),
    (b", skipped=", _ENGINE_STEP, lambda match: EngineStep(int(match[1]), int(match[2]))),
    (b"OVERFLOW! ", _OVERFLOW, _overflow),
    (b"saving checkpoint at ", _SAVING, lambda match: Saving(int(match[1]))),
    (b"successfully saved checkpoint ", _SAVED, lambda match: Saved(int(match[1]))),
    (b"successfully loaded checkpoint ", _LOADED, lambda match: Loaded(int(match[1]))),
    (b"will not load any checkpoints ", _FROM_RANDOM, lambda match: Loaded(None)),
    (
        b"using world size: ",
        _LAYOUT,
        lambda match: Layout(int(match[1]), int(match[2]), int(match[3]), int(match[4])),
    ),
    (b"padded vocab (size: ", _VOCABULARY, lambda match: Vocabulary(int(match[1]), int(match[2]))),
    (
        b"number of parameters on ",
        _PARAMETERS,
        lambda match: Parameters(int(match[1]), int(match[2]), int(match[3])),
    ),
    (b"memory (MB) | allocated: ", _MEMORY, lambda match: Memory(int(match[1]), float(match[2]), float(match[3]))),
    (b"[exiting program ", _EXITING, lambda match: Exiting(match[1].rstrip("."))),
    (b"exits with return code = ", _RANK_FAILED, lambda match: RankFailed(int(match[1]))),
    (b"View run ", _VIEWED, lambda match: Tracked(match[1])),
    (b"saved locally in ", _SAVED_LOCALLY, lambda match: Tracked(match[1])),
    *(_phase_of(words) for words in PHASES),
)
