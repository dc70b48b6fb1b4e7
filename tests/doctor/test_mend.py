"""Fixes: shown before they are done, nothing lost, nothing done twice, checked again, refused under a run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from doctor.observations import NEEDS, ORIGINAL, PINNED

from conftest import MakeRun, wizard
from core.doctor import setup
from core.doctor.apply import apply
from core.doctor.checks import BY_ID
from core.doctor.finding import Finding, Verdict
from core.doctor.fix import AddLines, Block, Command, Fix, MoveAside, RemoveLines, WriteFile, advice
from core.doctor.mend import Job, carry_out, jobs_of, jobs_text, refuse_while_running
from core.errors import InputError, StageError
from core.runs.lock import sign_lock, take_lock

HOOKS = {"hooks": ["edit_environment_variable.sh"]}
MODULE = {"files": ["x"], "fitting": ["x"]}
COMPLETE: dict[str, dict[str, Any]] = {
    "python.env": {"version": "3.9.18"},
    "python.pins": {"versions": PINNED},
    "python.ld_library_path": HOOKS,
    "cuda.nvcc_vs_torch": {"nvcc": [{"path": "/e/bin/nvcc", "version": "11.8"}]},
    "build.cxx": {"c++": {"path": "/e/bin/g++", "version": "g++ (conda-forge gcc 11.4.0-5) 11.4.0"}},
    "megatron.import": {"present": True, "tag": "ucllm_nedo_v20240415.1.0", "wins": "/m/megatron"},
    "megatron.helpers": {"built": "/m/helpers.so", "newer": True, "error": ""},
    "apex.so": {"modules": {"apex_C": MODULE, "amp_C": MODULE}},
    "flash.so": {"modules": {"flash_attn_2_cuda": MODULE}},
}


def said() -> tuple[list[str], Any]:
    lines: list[str] = []
    return lines, lines.append


def test_a_file_is_written_once_and_the_old_one_kept(tmp_path: Path) -> None:
    _, say = said()
    path = tmp_path / "activate.d" / "hook.sh"
    step = WriteFile(str(path), "export A=1\n")
    apply(step, say)
    apply(step, say)
    assert path.read_text() == "export A=1\n"
    assert len(list(path.parent.iterdir())) == 1
    apply(WriteFile(str(path), "export A=2\n"), say)
    (kept,) = path.parent.glob("hook.sh.bak-*")
    assert kept.read_text() == "export A=1\n"


def test_a_block_goes_to_the_top_and_is_replaced_in_its_place(tmp_path: Path) -> None:
    """Above `case $- in *i*) ;; *) return;; esac`: a shell of sshd's leaves there."""
    _, say = said()
    path = tmp_path / ".bashrc"
    path.write_text("case $- in *i*) ;; *) return;; esac\nalias ll='ls -l'\n")
    path.chmod(0o640)
    apply(Block(str(path), "limits", ("ulimit -n 1000",)), say)
    once = path.read_text()
    apply(Block(str(path), "limits", ("ulimit -n 1000",)), say)
    assert path.read_text() == once
    apply(Block(str(path), "limits", ("ulimit -n 2000",)), say)
    lines = path.read_text().splitlines()
    assert lines[1] == "ulimit -n 2000"
    assert lines[3:] == ["case $- in *i*) ;; *) return;; esac", "alias ll='ls -l'"]
    assert path.stat().st_mode & 0o777 == 0o640
    assert len(list(tmp_path.glob(".bashrc.bak-*"))) == 2


def test_repeated_lines_go_and_a_line_that_changed_since_stays(tmp_path: Path) -> None:
    _, say = said()
    path = tmp_path / "dotfiles"
    path.write_bytes(b"ulimit -n 1\nulimit -n 1\nexport B=\xff\nulimit -n 1\n")
    link = tmp_path / ".bashrc"
    link.symlink_to(path)
    apply(RemoveLines(str(link), ((2, "ulimit -n 1"), (3, "ulimit -n 1"))), say)
    assert path.read_bytes() == b"ulimit -n 1\nexport B=\xff\nulimit -n 1\n"
    assert link.is_symlink()


def test_moving_aside_keeps_everything(tmp_path: Path) -> None:
    _, say = said()
    for content in ("one", "two"):
        (tmp_path / "build").mkdir()
        (tmp_path / "build" / "kernel.so").write_text(content)
        apply(MoveAside(str(tmp_path / "build")), say)
    apply(MoveAside(str(tmp_path / "build")), say)  # gone already
    assert sorted(path.read_text() for path in tmp_path.glob("build.bak-*/kernel.so")) == ["one", "two"]


def test_a_commands_output_is_live_and_its_secrets_masked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary-canary-canary")
    lines, say = said()
    apply(Command(("sh", "-c", "echo one; echo $HF_TOKEN; echo $OWN; pwd"), env={"OWN": "x y"}, cwd=str(tmp_path)), say)
    assert lines == ["one", "***", "x y", str(tmp_path)]
    apply(Command(("false",), creates=str(tmp_path)), say)
    with pytest.raises(StageError, match="exit code 3"):
        apply(Command(("sh", "-c", "exit 3")), say)
    with pytest.raises(StageError, match="no-such-program"):
        apply(Command(("no-such-program",)), say)


def test_a_preview_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    out = tmp_path / "it's"
    out.mkdir()
    command = Command(("sh", "-c", 'echo "$A" > "$0"', "f'ile"), env={"A": "$(touch canary); x"}, cwd=str(out))
    subprocess.run(["bash", "-c", *command.preview()], check=True, cwd=tmp_path)
    assert (out / "f'ile").read_text() == "$(touch canary); x\n"
    assert not list(tmp_path.rglob("canary"))


def test_a_bare_machine_gets_the_whole_set_up_in_its_order() -> None:
    steps = [step.id for step in setup.missing_steps({}, ORIGINAL)]
    assert steps == [step.id for step in setup.STEPS]
    text = jobs_text(jobs_of([], {}, ORIGINAL, None))
    order = [
        "Miniforge3-Linux-x86_64.sh",
        "conda create --prefix /home/u/miniconda3/envs/.venv_train python=3.9 pip -y",
        'export LD_LIBRARY_PATH="/home/u/miniconda3/envs/.venv_train/lib',
        "--override-channels -c nvidia/label/cuda-11.8.0 cuda-toolkit=11.8.0 cuda-compiler=11.8.0 cuda-nvcc=11.8",
        "pytorch==2.2.0 torchvision==0.17.0 torchaudio==2.2.0 pytorch-cuda=11.8",
        "pip==24.0",
        "transformers==4.36.2",
        "DS_BUILD_OPS=1 DS_BUILD_EVOFORMER_ATTN=0 DS_BUILD_SPARSE_ATTN=0 DS_BUILD_AIO=0",
        "deepspeed==0.12.4",
        "Megatron-DeepSpeed checkout refs/tags/ucllm_nedo_v20240415.1.0",
        "python setup.py install",
        "make LIBEXT=",
        "apex checkout refs/tags/23.08",
        "--config-settings --build-option=--cpp_ext --config-settings --build-option=--cuda_ext",
        "--no-deps ninja==1.11.1",
        "flash-attn==2.5.0",
        "llm-jp-sft checkout refs/tags/ucllm_nedo_v20240415.1.0",
    ]
    places = [text.index(words) for words in order]
    assert places == sorted(places)
    assert "rm -rf" not in text
    assert "sudo" not in text


def test_every_step_of_the_set_up_is_a_command_that_bash_can_read() -> None:
    for step in setup.STEPS:
        for part in step.build(ORIGINAL).steps:
            if isinstance(part, Command):
                subprocess.run(["bash", "-n", "-c", *part.preview()], check=True)


@pytest.mark.parametrize(
    "step", [step.id for step in setup.STEPS if step.id not in ("setup.conda", "setup.llm-jp-sft")]
)
def test_what_is_done_is_passed_over_and_what_is_not_is_left(step: str) -> None:
    damaged: dict[str, tuple[str, dict[str, Any]]] = {
        "setup.env": ("python.env", {"version": "3.10.1"}),
        "setup.hooks": ("python.ld_library_path", {"hooks": []}),
        "setup.cuda": ("cuda.nvcc_vs_torch", {"nvcc": [{"path": "/usr/bin/nvcc", "version": "12.1"}]}),
        "setup.gcc": ("build.cxx", {"c++": {"path": "/usr/bin/c++", "version": "c++ (Debian 12.2.0-14) 12.2.0"}}),
        "setup.torch": ("python.pins", {"versions": PINNED | {"torch": "2.1.0"}}),
        "setup.pip": ("python.pins", {"versions": PINNED | {"pip": "22.3"}}),
        "setup.requirements": ("python.pins", {"versions": PINNED | {"trl": None}}),
        "setup.deepspeed": ("python.pins", {"versions": PINNED | {"deepspeed": "0.14.0"}}),
        "setup.megatron": ("megatron.import", {"present": False}),
        "setup.helpers": ("megatron.helpers", {"built": None, "newer": False, "error": ""}),
        "setup.apex": ("apex.so", {"modules": {"apex_C": {"files": [], "fitting": []}}}),
        "setup.flash": ("flash.so", {"modules": {"flash_attn_2_cuda": {"files": [], "fitting": []}}}),
    }
    name, value = damaged[step]
    left = [one.id for one in setup.missing_steps(COMPLETE | {name: value}, ORIGINAL)]
    assert step in left
    assert set(left) - {step} <= {
        "setup.conda",
        "setup.llm-jp-sft",
    }  # conda makes the environment; llm-jp-sft is a folder


def environment_of_files(tmp_path: Path) -> tuple[list[setup.SetupStep], Mapping[str, Any]]:
    """Three steps that each make a file, the second of which fails until `mended` exists."""

    def step(name: str, script: str) -> setup.SetupStep:
        path = tmp_path / name
        return setup.SetupStep(
            name,
            f"make {name}",
            lambda values, needs: path.exists(),
            lambda needs: Fix(name, "rebuild", (Command(("sh", "-c", f"{script} && touch {path}")),)),
        )

    return [step("one", "echo x >> count"), step("two", "test -e mended"), step("three", "true")], {}


def test_a_set_up_that_stopped_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps, _ = environment_of_files(tmp_path)
    monkeypatch.setattr(setup, "STEPS", tuple(steps))

    def run() -> tuple[bool, list[str]]:
        lines, say = said()
        jobs = jobs_of([], {}, ORIGINAL, None)
        return carry_out(jobs, ORIGINAL, lambda names: ([], {}), True, tmp_path / "logs", say), lines

    done, lines = run()
    assert not done
    assert any("exit code 1" in line for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count", "logs", "one"]
    (tmp_path / "mended").touch()
    done, lines = run()
    assert done
    assert lines[0].startswith("# 1/2 two")
    assert (tmp_path / "count").read_text() == "x\n"  # the first step ran once
    assert len(list((tmp_path / "logs").iterdir())) >= 3


def test_a_fix_that_is_not_safe_is_not_done_without_a_yes(tmp_path: Path) -> None:
    _, say = said()
    job = Job(Fix("x", "rebuild", (Command(("touch", str(tmp_path / "done"))),)), frozenset(), "x")
    with pytest.raises(InputError, match="no terminal"):
        carry_out([job], NEEDS, lambda names: ([], {}), False, tmp_path / "logs", say)
    assert not (tmp_path / "done").exists()


def test_only_what_is_asked_for_is_mended() -> None:
    pins = Finding(
        "python.pins", "n", "python", Verdict("fail", "s", fix=Fix("python.pins", "safe", (Command(("true",)),)))
    )
    words = Finding("gpu.ecc", "n", "gpu", Verdict("fail", "s", fix=advice("gpu.ecc", "drain it")))
    good = Finding("limits", "n", "limits", Verdict("pass", "s", fix=Fix("limits", "safe", (Command(("true",)),))))
    assert [job.fix.id for job in jobs_of([pins, words, good], {}, NEEDS, None)] == ["python.pins"]
    with pytest.raises(InputError, match="by hand"):
        jobs_of([pins, words], {}, NEEDS, frozenset(["gpu.ecc"]))
    with pytest.raises(InputError, match="nothing is to be mended by limits"):
        jobs_of([pins, good], {}, NEEDS, frozenset(["limits"]))


def test_nothing_is_mended_under_a_running_run(make_run: MakeRun) -> None:
    run = make_run({"corpus": {"script": "none.py"}})
    refuse_while_running(run.root.parent)
    descriptor = take_lock(run)
    try:
        sign_lock(descriptor)
        with pytest.raises(StageError, match=f"run {run.name} is running"):
            refuse_while_running(run.root.parent)
    finally:
        os.close(descriptor)


def test_a_stale_lock_of_torchs_extensions_is_moved_aside_and_checked_again(tmp_path: Path) -> None:
    """The whole way, with the real probe: found, shown, mended, found no more."""
    lock = tmp_path / "extensions" / "py311_cpu" / "fused_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (1, 1))
    env = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "LLM_WIZARD_HOME": str(tmp_path / "home")}
    shown = wizard("doctor", "--fix", "build.ext_cache", "--dry-run", cwd=tmp_path, **env)
    assert f"mv {lock} {lock}.bak-" in shown.stdout
    assert lock.exists()
    mended = wizard("doctor", "--fix", "build.ext_cache", cwd=tmp_path, **env)
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "pass" in mended.stdout.splitlines()[-1]
    assert not lock.exists()
    assert len(list(lock.parent.glob("lock.bak-*"))) == 1
    (log,) = (tmp_path / "home" / "fixes").iterdir()
    assert "moved" in log.read_text()


def test_the_fixes_can_be_read_as_json(tmp_path: Path) -> None:
    done = wizard("doctor", "--profile", "original", "--fix", "--dry-run", "--json", cwd=tmp_path, HOME=str(tmp_path))
    document = json.loads(done.stdout)
    assert [fix["id"] for fix in document["fixes"]][:2] == ["setup.conda", "setup.env"]
    assert all(set(fix) == {"id", "risk", "preview", "runnable", "checks", "title"} for fix in document["fixes"])


def test_every_fix_that_a_check_may_offer_exists() -> None:
    offered = {check.fix for check in BY_ID.values() if check.fix}
    assert {fix for fix in offered if fix.startswith("setup.")} <= set(setup.BY_ID)


def test_a_limit_of_open_files_is_raised_in_bashrc_for_every_shell_to_come(tmp_path: Path) -> None:
    """Under a low limit, as a log-in has it; two processes are planned, so that 4,096 files are needed."""
    (tmp_path / ".bashrc").write_text("case $- in *i*) ;; *) return ;; esac\n")
    env = {
        "HOME": str(tmp_path),
        "LLM_WIZARD_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    verb = f"{sys.executable} -m core.cli doctor --set cluster.processes=2 --set pretrain.device=cpu"

    def shell(command: str) -> subprocess.CompletedProcess[str]:
        script = f"ulimit -S -n 1024; {verb} {command}"
        return subprocess.run(
            ["bash", "-c", script], env={**os.environ, **env}, cwd=tmp_path, capture_output=True, text=True
        )

    mended = shell("--fix limits")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert "log out and in again" in mended.stdout
    assert "ulimit -n 4096" in (tmp_path / ".bashrc").read_text().splitlines()[1]
    assert shell("--only limits").returncode == 1  # a warning now: this shell is older than the line


def test_lines_are_added_once(tmp_path: Path) -> None:
    _, say = said()
    path = tmp_path / "ssh" / "known_hosts"
    apply(AddLines(str(path), ("a", "b")), say)
    apply(AddLines(str(path), ("b", "c")), say)
    assert path.read_text() == "a\nb\nc\n"
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_fix_for_several_nodes_has_each_step_once_and_is_asked_about(tmp_path: Path) -> None:
    def stranger(node: str) -> Finding:
        steps = (AddLines(str(tmp_path / "known"), (f"{node} key",)), WriteFile(str(tmp_path / "config"), "x\n"))
        fix = Fix("ssh.config", "safe", steps, (f"# {node}: SHA256:abc",), "are these right?")
        return Finding("ssh.batch", node, "ssh", Verdict("fail", "the host key is not known", fix=fix))

    (job,) = jobs_of([stranger("n1"), stranger("n2")], {}, NEEDS, None)
    assert len(job.fix.steps) == 3
    assert job.fix.advice == ("# n1: SHA256:abc", "# n2: SHA256:abc")
    with pytest.raises(InputError, match="no terminal"):
        carry_out([job], NEEDS, lambda names: ([], {}), False, tmp_path / "logs", print)
    assert not (tmp_path / "known").exists()


def test_what_another_node_needs_is_not_done_here(tmp_path: Path) -> None:
    """Its fix is text here, as `examine_fleet` makes it; this machine's own is what is carried out."""
    step = Command(("true",))
    mine = Finding("limits", "here", "limits", Verdict("fail", "s", fix=Fix("limits", "safe", (step,))))
    others = Finding("limits", "n2", "limits", Verdict("fail", "s", fix=Fix("limits", "safe", advice=("true",))))
    (job,) = jobs_of([others, mine], {}, NEEDS, None)
    assert (job.fix.steps, job.fix.advice) == ((step,), ())
    with pytest.raises(InputError, match="limits: this has to be done by hand, on n2"):
        jobs_of([others], {}, replace(NEEDS, nodes=("n1", "n2")), frozenset(["limits"]))


def test_a_fix_that_does_not_exist_is_told_from_one_that_is_not_needed() -> None:
    with pytest.raises(InputError, match="no check or fix 'limit'") as error:
        jobs_of([], {}, NEEDS, frozenset(["limit"]))
    assert error.value.hint == "did you mean limits?"


def test_a_log_that_cannot_be_written_stops_the_fix_before_it_begins(tmp_path: Path) -> None:
    job = Job(Fix("x", "safe", (Command(("touch", str(tmp_path / "done"))),)), frozenset(), "x")
    with pytest.raises(StageError, match="cannot be written") as error:
        carry_out([job], NEEDS, lambda names: ([], {}), False, Path("/proc/logs"), print)
    assert "LLM_WIZARD_HOME" in error.value.hint
    assert not (tmp_path / "done").exists()
