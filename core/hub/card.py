"""The model card, written from the run's own record. No path, host or user name of the machine gets into it."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCardData

from core import __version__
from core.files import read_json
from core.runs.directory import RunDirectory
from core.stages import BY_ID
from core.stages.upload import UPLOAD_FINETUNED, UploadSection

if TYPE_CHECKING:
    from core.hub.generation import Sample

PACKAGES = ("torch", "transformers", "tokenizers", "sentencepiece", "trl", "peft", "deepspeed")
PRETRAIN_FACTS = (
    "parameters", "parameters_without_embeddings", "tokens", "steps", "global_batch", "tokens_per_step", "warmup_steps",
    "lr", "min_lr", "precision", "engine",
)  # fmt: skip
FINETUNE_FACTS = ("method", "global_batch", "precision", "max_length")
RECORDED = ("corpus", "tokenizer", "data", "pretrain", "convert", "finetune")
"""The stages whose metrics the card shows."""


def write_card(run: RunDirectory, stage_id: str, section: UploadSection, source: Path, sample: Sample) -> str:
    """The text of README.md. What the run does not know (another's model folder) is left out, never made up."""
    chat = stage_id == UPLOAD_FINETUNED.id
    plan = read_json(run.plan)
    stages = {stage["id"]: stage for stage in plan["stages"]}
    config = read_json(source / "config.json")
    foreign = section.model is not None
    name = (section.repo or f"{run.name}-{'chat' if chat else 'base'}").rpartition("/")[2]
    parts = [
        metadata(section, config, chat),
        f"# {name}",
        introduction(config, chat, foreign, plan["preset"]["finetune"]["model"] is not None),
        architecture(config, source),
        usage(section.repo or name, chat, sample),
    ]
    if not foreign:
        parts += [how_it_was_made(run, stages, plan["preset"], chat), versions()]
    parts.append(
        "## Limits\n\nThe model says what its training data makes likely, not what is true. It has not been tested for safety, "
        "bias or fitness for any purpose."
    )
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def metadata(section: UploadSection, config: Mapping[str, Any], chat: bool) -> str:
    """The YAML block that the Hub reads."""
    data = ModelCardData(
        license=section.license,
        language=section.languages or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["llm-wizard", str(config["model_type"]), "conversational" if chat else "pretrained"],
    )
    return f"---\n{data.to_yaml()}\n---"


def introduction(config: Mapping[str, Any], chat: bool, foreign: bool, foreign_base: bool) -> str:
    """One sentence that claims no more than what this run did."""
    kind = "chat model" if chat else "language model"
    if foreign:
        return f"A {config['model_type']} {kind}, published with llm-wizard from an existing folder."
    how = "pretrained from scratch"
    if chat:
        how = "fine-tuned on conversations" if foreign_base else f"{how} and fine-tuned on conversations"
    return f"A {config['model_type']} {kind}, {how} with llm-wizard."


def architecture(config: Mapping[str, Any], source: Path) -> str:
    """What config.json and the weights' own headers say."""
    rows = [
        ("Architecture", ", ".join(config.get("architectures") or [config["model_type"]])),
        ("Parameters", f"{count_parameters(source):,}"),
        ("Layers", _first(config, "num_hidden_layers", "n_layer")),
        ("Hidden size", _first(config, "hidden_size", "n_embd")),
        ("Attention heads", _first(config, "num_attention_heads", "n_head")),
        ("Key/value heads", config.get("num_key_value_heads")),
        ("Vocabulary", config.get("vocab_size")),
        ("Longest input", _first(config, "max_position_embeddings", "n_positions")),
        ("Weights", _first(config, "dtype", "torch_dtype")),
    ]
    return "## Model\n\n" + table([(key, value) for key, value in rows if value is not None])


def usage(repo: str, chat: bool, sample: Sample) -> str:
    """A snippet that runs as it stands, and what the model said when it was checked."""
    load = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({repo!r})\n"
        f"model = AutoModelForCausalLM.from_pretrained({repo!r})\n"
    )
    if chat:
        ask = (
            'messages = [{"role": "user", "content": "What does `os.path.join` do?"}]\n'
            "inputs = tokenizer.apply_chat_template(\n"
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
            ")\n"
        )
        note = f"The tokenizer's chat template writes a question like this:\n\n{fenced(sample.prompt)}\n\n"
    else:
        ask = f'inputs = tokenizer({sample.prompt!r}, return_tensors="pt")\n'
        note = ""
    generate = "output = model.generate(**inputs, max_new_tokens=100)\nprint(tokenizer.decode(output[0]))"
    return (
        f"## Use\n\n{fenced(load + ask + generate, 'python')}\n\n{note}"
        f"Before it was published, the model wrote, greedily:\n\n{fenced(sample.text)}"
    )


def how_it_was_made(run: RunDirectory, stages: Mapping[str, Any], preset: Mapping[str, Any], chat: bool) -> str:
    """What was planned and what was measured, stage by stage."""
    sections = [f"## How it was made\n\nSeed {preset['seed']}. {_source_of_text(preset)}"]
    for stage_id in RECORDED:
        result = _result(run, stage_id)
        if result is None or (stage_id == "finetune" and not chat):
            continue
        derived = stages[stage_id]["derived"]
        planned: list[tuple[str, Any]] = []
        options: tuple[str, ...]
        if stage_id == "pretrain":
            options = ("schedule", "weight_decay", "clip_grad")
            planned = [(key, derived.get(key)) for key in PRETRAIN_FACTS] + _options(preset["pretrain"], options)
        if stage_id == "finetune":
            options = ("lr", "schedule", "epochs", "instruction_template", "response_template")
            planned = [(key, derived.get(key)) for key in FINETUNE_FACTS] + _options(preset["finetune"], options)
        measured = {key: value for key, value in result["metrics"].items() if _harmless(value)}
        facts = {key: value for key, value in planned if value is not None} | measured
        if facts:
            rows = [(key.replace("_", " "), _number(value)) for key, value in facts.items()]
            sections.append(f"### {BY_ID[stage_id].title}\n\n{table(rows)}")
    return "\n\n".join(sections)


def versions() -> str:
    """The packages that made it."""
    rows = [("llm-wizard", __version__)]
    for package in PACKAGES:
        try:
            rows.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return "## Versions\n\n" + table(rows)


def count_parameters(source: Path) -> int:
    """Elements of all tensors, from the headers of the safetensors files (length in 8 bytes, then JSON)."""
    total = 0
    for file in source.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                size = 1
                for length in tensor["shape"]:
                    size *= length
                total += size
    return total


def table(rows: list[tuple[str, Any]]) -> str:
    """A Markdown table of names and values."""
    return "\n".join(["| Name | Value |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows)])


def fenced(text: str, language: str = "") -> str:
    """A code block whose fence is longer than any in the text."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"


def _source_of_text(preset: Mapping[str, Any]) -> str:
    # Names of the user's files may say more than the user wants to: only their number is told.
    files, script = preset["corpus"]["files"], preset["corpus"]["script"]
    if files:
        return f"The text came from {len(files)} file{'s' if len(files) > 1 else ''} of the author's own."
    if script:
        return f"The text was written by the script `{Path(script).name}`."
    return ""


def _result(run: RunDirectory, stage_id: str) -> dict[str, Any] | None:
    try:
        return dict(read_json(run.result(stage_id)))
    except FileNotFoundError:
        return None


def _options(section: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, Any]]:
    return [(name, section[name]) for name in names]


def _harmless(value: Any) -> bool:
    """Numbers, and words that cannot be a path or an address."""
    if isinstance(value, str):
        return len(value) <= 60 and "/" not in value and "@" not in value and "\n" not in value
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.5g}" if isinstance(value, float) else value


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _first(config: Mapping[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if name in config), None)
