"""The fields of a preset as a form shows them, made from the sections themselves: help, default, kind, choices, unit.

The screen and the line-by-line prompts both ask what is here; neither knows a key by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from core.language import tr, tr_later
from core.preset import Preset
from core.preset_source import is_path, is_word, set_text
from core.section import Section

Kind = Literal["flag", "choice", "whole", "number", "text", "path", "list", "paths", "value"]
"""What is typed: `value` is anything else, in YAML's own notation."""

EMPTY = ""
"""How a field without a value is shown and typed."""


@dataclass(frozen=True)
class FieldSpec:
    """One key of a preset."""

    key: str
    """Dotted, as behind `--set`."""
    help: str
    """One English sentence; `tr(help)` where it is shown."""
    default: Any
    kind: Kind
    optional: bool = False
    """Whether it may be empty."""
    choices: tuple[str, ...] = ()
    """Of a choice, as typed; `EMPTY` among them where it may be empty."""
    unit: str = ""
    """English; `tr(unit)` where it is shown."""
    bounds: str = ""
    """Such as `> 0` or `0 .. 1`."""

    @property
    def if_empty(self) -> str:
        """What no value means, in a word or two: English; `tr(if_empty)` where it is shown. `help` says more."""
        return AUTOMATIC if self.key in _AUTOMATIC else NOT_SET

    @property
    def name(self) -> str:
        """The key without its section."""
        return self.key.rpartition(".")[2]

    def expected(self) -> str:
        """What can be typed, in the user's language."""
        words = tr(_KINDS[self.kind]) if self.kind != "choice" else " | ".join(filter(None, self.choices))
        return f"{words} {self.bounds}".strip()

    def shown(self, value: Any) -> str:
        """A value as it is shown in the form and can be typed back."""
        if value is None or value == []:
            return EMPTY
        if self.kind in ("list", "paths") and isinstance(value, list):
            return _listed(value)
        if value == "" and self.optional:  # not the same as nothing
            return set_text(value)
        if isinstance(value, str) and value.isprintable() and value == value.strip() and value[:1] not in _QUOTES:
            return value
        return set_text(value)

    def typed(self, text: str) -> str:
        """What stands behind `--set key=` for a text typed into the form.

        Bare numbers and words are text where text is wanted, and commas separate the items of a list.
        """
        text = text.strip()
        if text == EMPTY:
            nothing = {"list": "[]", "paths": "[]", "text": '""'}
            return "null" if self.optional else nothing.get(self.kind, "null")
        if text[0] in _QUOTES:
            return text
        if self.kind in ("text", "path"):
            return text if is_word(text) else set_text(text)
        if self.kind in ("list", "paths"):
            return set_text([item.strip() for item in text.split(",") if item.strip()])
        return text


AUTOMATIC, NOT_SET = tr_later("automatic"), tr_later("not set")
_AUTOMATIC = (
    "cluster.python",
    "cluster.nodes",
    "cluster.hostfile",
    "cluster.processes",
    "cluster.threads",
    "cluster.interface",
    "cluster.restarts",
    "cluster.hang_timeout",
    "tokenizer.files",
    "model.kv_heads",
    "model.ffn_size",
    "model.init_std",
    "pretrain.global_batch",
    "pretrain.lr",
    "pretrain.min_lr",
    "pretrain.warmup_steps",
    "megatron.python",
    "megatron.train_samples",
    "megatron.data_files",
    "megatron.output",
    "convert.checkpoint",
    "upload_pretrained.model",
    "finetune.files",
    "finetune.model",
    "finetune.max_length",
    "upload_finetuned.model",
    "wandb.entity",
    "wandb.group",
)
"""Without a value these follow from other values or from the machine, as their help says."""

_QUOTES = ("[", "{", '"', "'")

_KINDS: Mapping[Kind, str] = {
    "flag": tr_later("true or false"),
    "choice": tr_later("one of the choices"),
    "whole": tr_later("a whole number"),
    "number": tr_later("a number"),
    "text": tr_later("text"),
    "path": tr_later("a path"),
    "list": tr_later("texts, separated by commas"),
    "paths": tr_later("paths, separated by commas"),
    "value": tr_later("a value in YAML"),
}


@dataclass(frozen=True)
class Step:
    """One step of the walk: the stage that it prepares, and the preset's sections that it asks for."""

    id: str
    title: str
    """English; `tr(title)` where it is shown."""
    stage: str
    """The stage whose command and numbers belong to it."""
    sections: tuple[str, ...]
    only_with: tuple[str, str] | None = None
    """A key and the value of it without which nothing of the step counts."""


STEPS = (
    Step("environment", tr_later("Environment"), "environment", ("", "cluster")),
    Step("corpus", tr_later("Corpus"), "corpus", ("corpus",)),
    Step("tokenizer", tr_later("Tokenizer"), "tokenizer", ("tokenizer",)),
    Step("data", tr_later("Data"), "data", ("data",)),
    Step("model", tr_later("Model"), "pretrain", ("model",)),
    Step("pretrain", tr_later("Pretraining"), "pretrain", ("pretrain",)),
    Step("megatron", tr_later("Megatron"), "pretrain", ("megatron",), only_with=("pretrain.backend", "megatron")),
    Step("tracking", tr_later("W&B"), "pretrain", ("wandb",)),
    Step("convert", tr_later("Conversion"), "convert", ("convert",)),
    Step("upload-pretrained", tr_later("Publishing"), "upload-pretrained", ("upload_pretrained",)),
    Step("finetune", tr_later("Fine-tuning"), "finetune", ("finetune",)),
    Step("upload-finetuned", tr_later("Publishing chat"), "upload-finetuned", ("upload_finetuned",)),
    Step("slurm", tr_later("Slurm job"), "pretrain", ("slurm",)),
)
"""In the order of the walk; the section "" holds the keys at the top of a preset."""

_KEYS_OF_UNIT: Mapping[str, tuple[str, ...]] = {
    tr_later("steps"): (
        "pretrain.steps",
        "pretrain.warmup_steps",
        "pretrain.valid_interval",
        "pretrain.save_interval",
        "pretrain.log_interval",
        "finetune.steps",
        "finetune.save_interval",
        "finetune.log_interval",
    ),
    tr_later("tokens"): (
        "model.sequence_length",
        "pretrain.tokens",
        "pretrain.warmup_tokens",
        "finetune.max_length",
        "upload_pretrained.max_new_tokens",
        "upload_finetuned.max_new_tokens",
    ),
    tr_later("tokens/s"): ("pretrain.stated_tokens_per_s",),
    tr_later("sequences"): ("pretrain.global_batch", "pretrain.micro_batch", "megatron.train_samples"),
    tr_later("micro-batches"): ("pretrain.valid_batches", "finetune.gradient_accumulation"),
    tr_later("conversations"): ("finetune.micro_batch",),
    tr_later("epochs"): ("finetune.epochs",),
    tr_later("pieces"): ("tokenizer.vocab_size",),
    tr_later("lines"): ("tokenizer.input_sentence_size", "tokenizer.held_out_lines"),
    tr_later("bytes"): ("tokenizer.max_sentence_length",),
    tr_later("processes"): (
        "cluster.processes",
        "data.workers",
        "megatron.tensor_parallel",
        "megatron.pipeline_parallel",
    ),
    tr_later("minutes"): ("cluster.hang_timeout", "cluster.node_wait", "megatron.exit_minutes"),
    tr_later("nodes"): ("slurm.nodes", "finetune.nodes"),
    tr_later("seconds"): ("slurm.signal_before",),
    tr_later("threads"): ("cluster.threads", "tokenizer.num_threads"),
}
"""The sections carry no units; a number that is not here has none: a rate, a share, or a count of what its key says."""
_UNITS = {key: unit for unit, keys in _KEYS_OF_UNIT.items() for key in keys}


def fields_of(section: str) -> list[FieldSpec]:
    """The fields of one section of the preset, in its order; "" for the keys at the top."""
    return [spec for key, spec in all_fields().items() if key.rpartition(".")[0] == section]


@cache
def all_fields() -> Mapping[str, FieldSpec]:
    """Every key of a preset with its field, in the preset's order."""
    return {spec.key: spec for spec in _specs(Preset, "")}


def section_name(key: str) -> str:
    """The section that a key, or an item of its value, belongs to, or that it is; "" for the keys at the top."""
    return key.rpartition(".")[0] if key in all_fields() else key.partition(".")[0]


def step_of(key: str) -> Step | None:
    """The step where a key, or a whole section, is asked for."""
    section = section_name(key)
    return next((step for step in STEPS if section in step.sections), None)


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field of the preset is, with keys of its own; None for any other field."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Section) else None


def _specs(model: type[Section], prefix: str) -> Iterator[FieldSpec]:
    for name, field in model.model_fields.items():
        if (section := section_of(field)) is not None:
            yield from _specs(section, f"{prefix}{name}.")
        else:
            yield _spec(f"{prefix}{name}", field)


def _spec(key: str, field: FieldInfo) -> FieldSpec:
    inner, metadata, optional = _unwrapped(field)
    kind, choices = _kind(inner, field)
    return FieldSpec(
        key=key,
        help=field.description or "",
        default=field.get_default(call_default_factory=True),
        kind=kind,
        optional=optional,
        choices=((EMPTY, *choices) if optional else choices) if choices else (),
        unit=_UNITS.get(key, ""),
        bounds=_bounds(metadata),
    )


def _unwrapped(field: FieldInfo) -> tuple[Any, list[Any], bool]:
    """The type without None and Annotated, the constraints that were on it, and whether None is allowed."""
    annotation, metadata = field.annotation, list(field.metadata)
    arguments = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    optional = type(None) in arguments
    rest = [argument for argument in arguments if argument is not type(None)]
    if len(rest) == 1:
        annotation = rest[0]
    if get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata += [part for extra in more for part in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
    return annotation, metadata, optional


def _kind(annotation: Any, field: FieldInfo) -> tuple[Kind, tuple[str, ...]]:
    if annotation is bool:
        return "flag", ("true", "false")
    if get_origin(annotation) is Literal:
        return "choice", tuple(map(str, get_args(annotation)))
    if get_origin(annotation) is list:
        return ("paths" if is_path(field) else "list"), ()
    if annotation is str:
        return ("path" if is_path(field) else "text"), ()
    return {int: "whole", float: "number"}.get(annotation, "value"), ()  # type: ignore[return-value]


def _bounds(metadata: list[Any]) -> str:
    low = next((f">= {m.ge}" if isinstance(m, Ge) else f"> {m.gt}" for m in metadata if isinstance(m, (Ge, Gt))), "")
    high = next((f"<= {m.le}" if isinstance(m, Le) else f"< {m.lt}" for m in metadata if isinstance(m, (Le, Lt))), "")
    return f"{low}, {high}" if low and high else low or high


def _listed(items: list[Any]) -> str:
    """`a, b` where commas can separate the items again, else YAML."""
    plain = all(
        isinstance(item, str) and item and "," not in item and item == item.strip() and item.isprintable()
        for item in items
    )
    return ", ".join(items) if plain and items[0][0] not in _QUOTES else set_text(items)
