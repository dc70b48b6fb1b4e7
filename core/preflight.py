"""What can be known to be wrong before anything is started: missing files, an empty corpus, a sequence nobody reaches.

Only a bounded part of the user's text is read here; the stages check the whole of it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from core.errors import InputError
from core.plan import Plan
from core.preset import Preset
from core.stages.base import StagePlan


def check_plan(plan: Plan, run_root: Path) -> None:
    """Raises InputError with every missing input, then for a corpus that cannot work."""
    problems = [problem for stage in plan.stages if not stage.skip for problem in _missing(stage, plan, run_root)]
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    running = {stage.id for stage in plan.stages if not stage.skip}
    _check_python(plan.preset)
    _check_megatron_python(plan)
    if plan.preset.corpus.files and running & {"tokenizer", "data"} and not plan.preset.data.prefix:
        _check_corpus(plan.preset)


def _missing(stage: StagePlan, plan: Plan, run_root: Path) -> list[str]:
    problems = []
    made = {path: other for other in plan.stages for path in _would_make(other, plan, run_root)}
    for name, paths in stage.inputs.items():
        for path in paths:
            if not path.startswith(f"{run_root}{os.sep}"):
                if path in made and made[path].id in ("data", "pretrain") and not made[path].skip:
                    continue  # what they make may lie outside of the run: data.output_folder, megatron.output
                if not Path(path).exists():
                    problems.append(
                        f"{stage.id}: {name}: there is no file or folder {path}{_how_to_get(stage.id, name, path)}"
                    )
                elif not os.access(path, os.R_OK):
                    problems.append(f"{stage.id}: {name}: {path} cannot be read")
                continue
            maker = made.get(path)
            if maker is not None and maker.skip:
                problems.append(
                    f"{stage.id} reads {name} from the stage {maker.id}, which does not run ({maker.skip})"
                    f"{_way_out(stage.id, name, maker.id)}"
                )
    return problems


def _would_make(stage: StagePlan, plan: Plan, run_root: Path) -> list[str]:
    """The outputs of a stage, also of one that is skipped (its plan names none then)."""
    from core.runs.directory import RunDirectory
    from core.stages.corpus import corpus_files
    from core.stages.data import data_prefixes
    from core.stages.finetune import chat_files
    from core.stages.tokenizer import tokenizer_file

    run = RunDirectory(run_root)
    named = {
        "corpus": [*corpus_files(plan.preset, run), *chat_files(plan.preset, run)],
        "tokenizer": [tokenizer_file(plan.preset, run), str(run.huggingface_tokenizer)],
        "data": [
            f"{prefix}{ending}"
            for prefix in {*data_prefixes(plan.preset, run), str(run.data_prefix)}
            for ending in (".bin", ".idx")
        ],
        "pretrain": [str(run.checkpoints), *stage.outputs.values()],
        "convert": [str(run.pretrained)],
        "finetune": [str(run.finetuned)],
    }
    return named.get(stage.id, [])


def _how_to_get(stage_id: str, name: str, path: str) -> str:
    from core.preset_source import SHIPPED
    from core.stages.finetune import ORIGINAL_CONVERSATIONS

    if (stage_id, name) == ("finetune", "conversations") and path.endswith(ORIGINAL_CONVERSATIONS):
        return f"; `python {SHIPPED / 'openassistant.py'} {path}` fetches it, --set finetune.files=FILE gives others"
    if name == "checkout":
        section = "megatron" if stage_id == "pretrain" else stage_id
        return f"; --set {section}.checkout=FOLDER says where the checkout is"
    if stage_id == "pretrain" and path.endswith(
        ("/dataset/arxiv_text_document.bin", "/dataset/arxiv_text_document.idx")
    ):
        folder = Path(path).parent
        return (
            f"; fetch the text into {folder}/arxiv.jsonl (presets/original_texts.py says where it is), and let the data stage make "
            f"it: --set corpus.files={folder}/arxiv.jsonl --set data.tool=preprocess_data --set data.output_folder={folder}"
        )
    return ""


def _way_out(stage_id: str, name: str, maker_id: str) -> str:
    key = {
        ("convert", "checkpoint"): "convert.checkpoint",
        ("finetune", "model"): "finetune.model",
        ("finetune", "conversations"): "finetune.files",
        ("upload-pretrained", "model"): "upload_pretrained.model",
        ("upload-finetuned", "model"): "upload_finetuned.model",
        ("tokenizer", "text"): "corpus.files",
        ("data", "text"): "corpus.files",
    }.get((stage_id, name))
    if key:
        return f"; give one with --set {key}=PATH"
    return f"; start with --from {maker_id}"


def _check_python(preset: Preset) -> None:
    python = preset.cluster.python
    if python and not (Path(python).is_file() and os.access(python, os.X_OK)):
        raise InputError(f"cluster.python: {python} is not a program that can be run")


def _check_megatron_python(plan: Plan) -> None:
    """On other nodes it may lie where this machine has nothing; there the doctor looks."""
    python = plan.preset.megatron.python
    used = any(stage.driver == "megatron" and not stage.skip and stage.launcher == "local" for stage in plan.stages)
    if python and used and not shutil.which(python):
        raise InputError(f"megatron.python: {python} is not a program that can be run")


def _check_corpus(preset: Preset) -> None:
    from core.text.readers import look_into

    corpus, model = preset.corpus, preset.model
    seen = look_into(corpus.files, corpus.text_key)
    if seen.documents == 0 and seen.complete:
        raise InputError(
            f"the corpus is empty: no usable document in {', '.join(corpus.files)}"
            + (f" ({seen.rejected} lines rejected; the first: {seen.first_rejected})" if seen.rejected else ""),
            f"a document is a JSON object with a text under {corpus.text_key!r} (--set corpus.text_key=NAME)",
        )
    # A token covers at least one byte; <EOD> and the space put before the text are two more.
    longest = seen.longest_bytes + 2
    if seen.complete and longest < model.sequence_length and not preset.pretrain.allow_short_documents:
        raise InputError(
            f"no document reaches model.sequence_length = {model.sequence_length}: the longest has at most {longest} tokens",
            f"--set model.sequence_length={max(8, 1 << (longest.bit_length() - 2))}, or "
            "--set pretrain.allow_short_documents=true to train on sequences that span documents",
        )
