import os
import re

import pytest
from forked_stage import fork_stage

from core.model import ModelSection
from core.train.tracking import group_name


def test_an_offline_run_is_written_under_the_run_directory(training_run) -> None:  # type: ignore[no-untyped-def]
    run = training_run({"steps": 2}, wandb={"mode": "offline", "project": "p", "tags": ["a-tag"]})
    stage = fork_stage(run, "pretrain", WANDB_API_KEY="not-used-offline")
    assert stage.wait() == 0, stage.output
    files = list((run.stage("pretrain") / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 1
    content = files[0].read_bytes()
    assert re.search(rb"pretrain_llama_[0-9.e-]+B_" + re.escape(os.uname().nodename[:60].encode()), content)
    for expected in (b"a-tag", b"val_loss", b"tokens_per_s", run.name.encode()):
        assert expected in content
    assert b"not-used-offline" not in content
    (event,) = [line for line in run.events.read_text().splitlines() if '"kind":"wandb"' in line]
    assert f'"folder":"{files[0].parent}"' in event


@pytest.mark.parametrize("host", ["node-1", "h" * 300])
def test_the_group_is_the_original_pipelines_and_never_too_long(host: str) -> None:
    name = group_name(ModelSection(size="1.3B").shape(), host, 1.7e9)
    assert re.fullmatch(r"pretrain_llama_1\.\d+B_(node-1|h{60})_\d{4}\.\d\d\.\d\d_\d\d\.\d\d\.\d\d", name)
    assert len(name) < 128
