import os
import re

import pytest
from forked_ranks import ForkedRanks, output
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
    for expected in (b"a-tag", b"val_loss", b"tokens_per_s", f"{run.name}_{os.uname().nodename[:60]}".encode()):
        assert expected in content
    assert b"not-used-offline" not in content
    (event,) = [line for line in run.events.read_text().splitlines() if '"kind":"wandb"' in line]
    assert f'"folder":"{files[0].parent}"' in event


@pytest.mark.parametrize("host", ["node-1", "h" * 300])
def test_the_group_is_the_original_pipelines_and_never_too_long(host: str) -> None:
    name = group_name(ModelSection(size="1.3B").shape(), host, 1.7e9)
    assert re.fullmatch(r"pretrain_llama_1\.\d+B_(node-1|h{60})_\d{4}\.\d\d\.\d\d_\d\d\.\d\d\.\d\d", name)
    assert len(name) < 128


@pytest.mark.slow
def test_every_node_has_a_run_in_the_head_nodes_group_and_only_the_first_one_has_the_metrics(training_run) -> None:  # type: ignore[no-untyped-def]
    run = training_run({"steps": 2}, cluster={"processes": 2}, wandb={"mode": "offline", "project": "p"})
    ranks = ForkedRanks()
    # Two nodes of one rank each: that is what LOCAL_RANK says.
    often = {"WANDB_X_STATS_SAMPLING_INTERVAL": "0.1"}
    codes = ranks.run(run, LOCAL_RANK="0", LLM_WIZARD_HEAD="login-1", **often)
    ranks.close()
    assert codes == [0, 0], output(run)
    contents = [file.read_bytes() for file in (run.stage("pretrain") / "wandb").glob("offline-run-*/run-*.wandb")]
    assert len(contents) == 2
    groups = {re.search(rb"pretrain_llama_[0-9.e-]+B_login-1_[0-9._]+", content)[0] for content in contents}  # type: ignore[index]
    assert len(groups) == 1
    for content in contents:
        assert f"{run.name}_{os.uname().nodename[:60]}".encode() in content
        assert b"global_batch" in content, "the configuration"
        assert b"memory_percent" in content, "what W&B measures on the node"
    assert sorted(b"grad_norm" in content for content in contents) == [False, True]
    assert run.events.read_text().count('"kind":"wandb"') == 1
