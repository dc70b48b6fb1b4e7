"""`llm-wizard init`: the walk of the Setup screen line by line, for terminals that cannot show a screen.

It asks for what most runs differ in, takes any other key by name, and writes a preset file. Nothing is written before the
last question is answered.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import get_terminal_size
from typing import NamedTuple

from core.errors import InputError
from core.exit_codes import ExitCode
from core.language import language, tr
from core.preset_source import load_preset, shipped_presets
from core.runs.directory import check_run_name
from core.text.cells import wrapped
from core.text.plain import plain
from tui.asking import EMPTY_ANSWER, Asker, LineAsker, asker
from tui.draft import Draft
from tui.form import EMPTY, STEPS, FieldSpec, Step, all_fields, section_name
from tui.walk import steps_for

Condition = Callable[[Draft], bool]


def _always(_draft: Draft) -> bool:
    return True


class Question(NamedTuple):
    """A key that the walk asks for, where its condition holds."""

    key: str
    condition: Condition = _always


QUESTIONS = (
    Question("cluster.python"),
    Question("corpus.files"),
    Question("corpus.text_key", lambda draft: bool(draft.value("corpus.files"))),
    Question("tokenizer.model"),
    Question("tokenizer.vocab_size", lambda draft: not draft.value("tokenizer.model")),
    Question("model.size"),
    Question("model.layers", lambda draft: not draft.value("model.size")),
    Question("model.hidden_size", lambda draft: not draft.value("model.size")),
    Question("model.heads", lambda draft: not draft.value("model.size")),
    Question("model.sequence_length"),
    Question("pretrain.steps"),
    Question("pretrain.tokens", lambda draft: not draft.value("pretrain.steps")),
    Question("pretrain.global_batch"),
    Question("pretrain.micro_batch"),
    Question("pretrain.lr"),
    Question("megatron.checkout"),
    Question("megatron.tensor_parallel"),
    Question("megatron.pipeline_parallel"),
    Question("wandb.mode"),
    Question("upload_pretrained.to"),
    Question("upload_pretrained.repo", lambda draft: draft.value("upload_pretrained.to") == "hub"),
    Question("finetune.files"),
    Question("finetune.lora"),
    Question("finetune.lr"),
    Question("upload_finetuned.to"),
    Question("upload_finetuned.repo", lambda draft: draft.value("upload_finetuned.to") == "hub"),
)

MUST_EXIST = ("corpus.files", "finetune.files", "tokenizer.model", "cluster.python")
"""Paths of this machine that are looked for at once, before a whole walk rests on them."""


def init(options: argparse.Namespace) -> int:
    """Ask, write the preset file, and offer to run it.

    `options` are those of the verb, or of a bare `llm-wizard`. Returns the exit code: that of the run where it was started;
    130 where the walk was left. Raises InputError where there is no terminal, or no such preset.
    """
    output: Path | None = getattr(options, "output", None)
    written: Path | None = None
    try:
        with asker() as ask:
            _greet(ask)
            draft = Draft.from_preset(getattr(options, "preset", None) or _choose_preset(ask))
            asked = [step for step in steps_for(draft) if _questions(step)]
            for number, step in enumerate(asked, 1):
                ask.say(f"\n{number}/{len(asked)} {tr(step.title)}")
                _ask_step(ask, draft, step)
            _other_keys(ask, draft)
            written = _write(ask, draft, output)
            argv = _choose_next(ask, written, options.runs_dir)
    except (KeyboardInterrupt, EOFError):
        place = tr("{path} is written.", path=plain(str(written))) if written else tr("Nothing was written.")
        print("\n" + tr("Left.") + " " + place, file=sys.stderr)
        return ExitCode.INTERRUPTED
    if argv is None:
        return ExitCode.DONE
    from core.cli import main

    return main(argv)


def _greet(ask: Asker) -> None:
    ask.say(tr("A preset in a few questions. Enter takes the answer that is there; Ctrl-C leaves and writes nothing."))
    if isinstance(ask, LineAsker):
        ask.say(tr("A single {mark} is an empty answer.", mark=EMPTY_ANSWER))


def _choose_preset(ask: Asker) -> str:
    choices = [(name, f"{name}  {tr(load_preset(name).preset.description)}") for name in shipped_presets()]
    ask.say()
    default = "quickstart" if "quickstart" in shipped_presets() else choices[0][0]
    return ask.choice(tr("Begin with which preset?"), choices, default)


def _questions(step: Step) -> list[Question]:
    return [question for question in QUESTIONS if section_name(question.key) in step.sections]


def _ask_step(ask: Asker, draft: Draft, step: Step) -> None:
    """The step's questions, then whatever its sections still find wrong."""
    for question in _questions(step):
        if question.condition(draft):
            _ask_field(ask, draft, all_fields()[question.key])
    _mend(ask, draft, step)


def _mend(ask: Asker, draft: Draft, step: Step) -> None:
    """Ask for keys of the step until its sections find nothing wrong: also what several keys make wrong together."""
    while wrong := [problem for problem in draft.problems() if section_name(problem.key) in step.sections]:
        ask.say(f"  ! {plain(wrong[0].text)}")
        keys = [key for key in all_fields() if section_name(key) == section_name(wrong[0].key)]
        likely = wrong[0].key if wrong[0].key in keys else next((key for key in keys if key in draft.changes), keys[0])
        _ask_field(ask, draft, all_fields()[ask.choice(tr("Change which key?"), [(key, key) for key in keys], likely)])


def _ask_field(ask: Asker, draft: Draft, spec: FieldSpec) -> None:
    """One key, with its sentence of help above; what is typed is checked as `--set` would."""
    ask.say()
    for line in wrapped(tr(spec.help), get_terminal_size().columns - 1, "  ", "  "):
        ask.say(line)
    shown = spec.shown(draft.value(spec.key))
    if spec.kind in ("choice", "flag"):
        choices = [(value, value or tr("(empty)")) for value in spec.choices]
        draft.set(
            spec.key, spec.typed(ask.choice(spec.key, choices, shown if shown in spec.choices else spec.choices[0]))
        )
        return
    unit = f" ({tr(spec.unit)})" if spec.unit else ""
    ask.text(f"{spec.key}{unit}", shown, lambda answer: _set(draft, spec, answer))


def _set(draft: Draft, spec: FieldSpec, answer: str) -> str:
    """Set the key; returns what is wrong with the answer itself, not with how it fits the others."""
    problem = draft.set(spec.key, spec.typed(answer))
    if problem and (problem.key == spec.key or problem.key.startswith(f"{spec.key}.")):
        return problem.text
    if spec.key in MUST_EXIST and answer != EMPTY:
        value = draft.value(spec.key)
        for path in [value] if isinstance(value, str) else value:
            if not Path(path).is_file():
                return tr("there is no file {path}", path=path)
    return ""


def _other_keys(ask: Asker, draft: Draft) -> None:
    """Any key by name, until nothing is named and nothing is wrong."""
    ask.say("\n" + tr("Every other key keeps its value; docs/preset.md lists them."))

    def check(answer: str) -> str:
        return "" if not answer or answer in all_fields() else tr("there is no key {key}", key=answer)

    while key := ask.text(tr("Change another key? (its name, or nothing)"), EMPTY, check):
        _ask_field(ask, draft, all_fields()[key])
        _mend(ask, draft, next(step for step in STEPS if section_name(key) in step.sections))


def _write(ask: Asker, draft: Draft, output: Path | None) -> Path:
    """Write the preset file and return its path; a file that is there is replaced only after a yes."""
    draft.preset()
    ask.say()
    while True:
        path = output or Path(ask.text(tr("Write the preset to which file?"), "mine.yaml", _is_file_name))
        output = None
        if path.is_dir():
            ask.say("  ! " + tr("{path} is a folder", path=plain(str(path))))
            continue
        if path.exists() and not _agrees(ask, tr("{path} exists. Replace it?", path=plain(str(path))), default=False):
            continue
        try:
            draft.save(path)
        except InputError as error:
            ask.say(f"  ! {plain(str(error))}")
            continue
        ask.say(tr("{path} is written.", path=plain(str(path))))
        return path


def _is_file_name(answer: str) -> str:
    return "" if answer else tr("a file name is needed")


def _agrees(ask: Asker, question: str, default: bool) -> bool:
    choices = [("yes", tr("Yes")), ("no", tr("No"))]
    return ask.choice(question, choices, "yes" if default else "no") == "yes"


def _choose_next(ask: Asker, path: Path, runs_dir: Path) -> list[str] | None:
    """The command line that runs the preset, where the user wants that now."""
    shared = ["--runs-dir", str(runs_dir), "--lang", language()]
    preset = str(path) if path.suffix in (".yaml", ".yml") or "/" in str(path) else f"./{path}"
    next_steps = [("run", tr("Run it now")), ("plan", tr("Show its plan first")), ("leave", tr("Leave"))]
    while (chosen := ask.choice(tr("What next?"), next_steps, "run")) == "plan":
        from core.cli import main

        main([*shared, "plan", preset])
    if chosen == "leave":
        ask.say(tr("Later: {command}", command=f"llm-wizard run {shlex.quote(preset)}"))
        return None
    name = _free_name(ask, path.stem, runs_dir)
    argv = ["run", preset, *(["--name", name] if name != path.stem else [])]
    ask.say(f"\n$ llm-wizard {shlex.join(argv)}")
    return [*shared, *argv]


def _free_name(ask: Asker, stem: str, runs_dir: Path) -> str:
    """The run's name: the file's, or another where that is taken or cannot be one."""

    def check(name: str) -> str:
        try:
            check_run_name(name)
        except InputError as error:
            return error.message
        return tr("there is a run {name} already", name=name) if (runs_dir / name).exists() else ""

    if not check(stem):
        return stem
    free = next(name for number in range(2, 10_000) if not check(name := f"run-{number}"))
    return ask.text(tr("Name of the run"), free, check)
