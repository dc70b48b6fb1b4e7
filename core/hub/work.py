"""The upload stages: check by generating, describe, collect exactly the files of an upload, and publish them."""

from __future__ import annotations

from pathlib import Path

from core import folders
from core.hub import contents
from core.hub.card import write_card
from core.hub.repository import Repository
from core.stages import BY_ID
from core.stages.base import Outcome, StageContext
from core.stages.upload import UPLOAD_FINETUNED, UploadSection


def publish(context: StageContext) -> Outcome:
    """Publish the model folder of this stage: into `run.upload(stage_id)`, and from there to the Hub if asked.

    Metrics: files, bytes; for the Hub also url and commit.

    Raises:
        InputError: no model folder, nobody logged in, a public repository where a private one is asked for.
        StageError: the generation check failed, a secret was found, or the Hub did not take the files.
    """
    section: UploadSection = getattr(context.preset, BY_ID[context.stage_id].section)
    source = Path(context.plan["inputs"]["model"][0])
    files, left_behind = contents.select(source)
    repository = Repository(section.repo) if section.to == "hub" and section.repo else None
    if repository:
        print(f"logged in to the Hub as {repository.check_login()}", flush=True)
    contents.refuse_secrets(files)
    # Only now what takes seconds to import and minutes to load.
    from core.hub.generation import generate

    # A chat model is asked in its format, unless the prompt is written in it already.
    chat = context.stage_id == UPLOAD_FINETUNED.id
    asked = chat and context.preset.finetune.instruction_template not in section.test_prompt
    sample = generate(source, section.test_prompt, section.max_new_tokens, asked)
    print(f"prompt: {sample.prompt!r}\ngenerated: {sample.text!r}", flush=True)

    target = context.run.upload(context.stage_id)
    building = folders.begin(target)
    # Somebody else's model keeps the card that its folder has.
    own_card = section.model is not None and any(file.name == "README.md" for file in files)
    card = None if own_card else write_card(context.run, context.stage_id, section, source, sample)
    contents.fill(building, files, card)
    contents.refuse_secrets(sorted(building.iterdir()))
    folders.put_in_place(building, target)
    entries = contents.write_manifest(target, context.run.stage(context.stage_id) / "upload-manifest.json")
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{len(entries)} files, {size} bytes in {target}", flush=True)
    if left_behind:
        print(f"not part of an upload, left out: {', '.join(left_behind)}", flush=True)
    metrics: dict[str, object] = {"files": len(entries), "bytes": size}
    if repository:
        repository.create(section.private)
        names = [str(entry["name"]) for entry in entries]
        url, commit = repository.upload(target, names, f"llm-wizard: {context.stage_id}")
        repository.verify(target, entries, commit)
        print(f"published: {url} at commit {commit}", flush=True)
        metrics |= {"url": url, "commit": commit}
    return Outcome(outputs={"folder": str(target)}, metrics=metrics)
