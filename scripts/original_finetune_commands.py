"""Runs the original pipeline's own fine-tuning and preprocessing scripts, with fakes for what they start, and compares each command
word by word with what the preset that stands for it plans under megatron.strict_original.

    python scripts/original_finetune_commands.py UCLLM_NEDO_PROD/train/scripts

Prints a line for each script and for each DeepSpeed configuration; exits with 1 where one differs. Nothing is trained or fetched: python,
deepspeed, ssh, scontrol and nvidia-smi on the PATH are fakes, which note their arguments.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "llm_jp_sft"), str(ROOT / "tests" / "data")]

import test_original_presets as finetune  # noqa: E402
import test_preprocess as preprocess  # noqa: E402

from core.data.preprocess_command import ORIGINALS  # noqa: E402

NOTES = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["NOTES"], "a") as notes:
    notes.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""
FAKES = {
    "python": NOTES,
    "deepspeed": NOTES,
    "conda": "#!/bin/bash\n",
    "ssh": '#!/bin/bash\nshift\neval "$@"\n',
    "scontrol": "#!/bin/bash\necho n1\necho n2\n",
}
JOB, TIME = "77", re.compile(r"_HOST_\d{4}\.\d\d\.\d\d_\d\d\.\d\d\.\d\d$")


@dataclass(frozen=True)
class Started:
    """What a script has started, and the folders that stand in its words."""

    calls: list[list[str]]
    home: Path
    script: Path

    def words(self, call: int, **names: str) -> list[str]:
        """The arguments of one call, without what differs from start to start; `names` are what else to replace by what."""
        train = self.home / "ucllm_nedo_dev" / "train"
        places = {
            str(self.script.parent / "deepspeed_config"): "DS_CONFIG",
            str(train / "llm-jp-sft"): finetune.CHECKOUT,
        }
        places |= {str(train / "Megatron-DeepSpeed"): "/m", str(self.home / "output"): finetune.OUTPUT, **names}
        places[str(self.script.parent / f"hostfile_jobid-{JOB}")] = "HOSTFILE"
        found = []
        for word in self.calls[call][1:]:
            for place, name in places.items():
                word = word.replace(place, name)
            found.append("PORT" if word == str(10000 + int(JOB)) else TIME.sub("_HOST_TIME", word))
        return found


def start(scripts: Path, path: str, arguments: Sequence[str], gpus: int) -> Started:
    """Run one script in a home folder of its own."""
    home = Path(tempfile.mkdtemp(prefix="original-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    dataset = home / "ucllm_nedo_dev" / "train" / "llm-jp-sft" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "openassistant_best_replies_train.jsonl").write_text("{}\n")
    (home / "miniconda3" / "etc" / "profile.d").mkdir(parents=True)
    (home / "miniconda3" / "etc" / "profile.d" / "conda.sh").touch()
    (home / "hosts").write_text("n1\nn2\n")
    (home / "bin").mkdir()
    for name, text in {**FAKES, "nvidia-smi": "#!/bin/bash\n" + "echo A100\n" * gpus}.items():
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755)
    script = home / "scripts" / path
    script.parent.mkdir(parents=True)
    script.write_bytes((scripts / path).read_bytes())
    environment = {
        "HOME": str(home), "PATH": f"{home / 'bin'}:{os.defpath}", "NOTES": str(home / "notes"), "HOSTNAME": "HOST",
        "SLURM_JOB_ID": JOB, "JOB_ID": JOB, "SLURM_JOB_NODELIST": "n[1-2]", "SGE_JOB_HOSTLIST": str(home / "hosts"),
    }  # fmt: skip
    given = [word.replace("HOME_FOLDER", str(home)) for word in arguments]
    done = subprocess.run(["bash", str(script), *given], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{path} ended with {done.returncode}: {done.stderr}")
    return Started([json.loads(line) for line in (home / "notes").read_text().splitlines()], home, script)


def compare_finetuning(scripts: Path) -> Iterator[tuple[bool, str]]:
    for name, script in finetune.SCRIPTS.items():
        for tag in ("", "try") if script.tag else ("",):
            arguments = [
                "--input_model_name_or_path",
                finetune.MODEL,
                "--wandb_entity",
                "team",
                "--wandb_project",
                "llm",
            ]
            arguments += ["--output_tokenizer_and_model_dir", "HOME_FOLDER/output"]
            arguments += ["--input_max_seq_length", "1024"] if script.length == "LENGTH" else []
            arguments += ["--wandb_tag", tag] if tag else []
            words = start(scripts, script.path, arguments, script.gpus).words(0)
            strict = finetune.planned(name, finetune.STRICT, *([f"wandb.tags=[{tag}]"] if tag else []))
            equal = words == finetune.words(strict) == finetune.expected(script, tag=tag)
            corrections = len(finetune.planned(name).derived["corrections"])
            yield (
                equal,
                f"{len(words):3} words  {name}{' with a tag' if tag else f'; {corrections} corrections otherwise'}",
            )
        if script.zero:
            file = (scripts / script.path).parent / "deepspeed_config" / f"ds_config_zero{script.zero}.json"
            ours = finetune.planned(name, finetune.STRICT).derived["ds_config"]
            theirs = json.loads(file.read_text())
            yield (theirs == ours and list(theirs) == list(ours)), f"           {file.name} of {name}"


def compare_preprocessing(scripts: Path) -> Iterator[tuple[bool, str]]:
    for name, path in zip(preprocess.PRESETS, ORIGINALS, strict=True):
        folder = Path(tempfile.mkdtemp(prefix="original-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        for part in ("in", "out"):
            (folder / part).mkdir()
        for file in ("a", "b"):
            (folder / "in" / f"{file}.jsonl").write_text("{}\n")
        tokenizer = str(preprocess.RUN.tokenizer / "tokenizer.model")
        arguments = [
            "--input_tokenizer_file",
            tokenizer,
            "--input_file_dir",
            f"{folder}/in",
            "--output_file_dir",
            f"{folder}/out",
        ]
        started = start(scripts, path, arguments, 0)
        found = []
        for call in range(len(started.calls)):
            words = started.words(call, **{f"{folder}/in": "/in", f"{folder}/out": "/out"})
            words[words.index("--workers") + 1] = str(preprocess.FACTS.cores)
            found.append(" ".join(["/py/bin/python", *words]))
        derived = preprocess.planned(name, "megatron.strict_original=true")
        equal = (
            found
            == [derived["command 1"], derived["command 2"]]
            == [preprocess.expected("a"), preprocess.expected("b")]
        )
        yield equal, f"{len(found)} commands  {name}"


def main(argv: list[str]) -> int:
    if len(argv) != 1 or not (Path(argv[0]) / "step4_finetune_model").is_dir():
        print(f"usage: python {sys.argv[0]} UCLLM_NEDO_PROD/train/scripts", file=sys.stderr)
        return 64
    lines = [*compare_finetuning(Path(argv[0])), *compare_preprocessing(Path(argv[0]))]
    for equal, text in lines:
        print(f"{'equal' if equal else 'DIFFERS':<8} {text}")
    different = sum(not equal for equal, _ in lines)
    print(f"{len(lines)} compared, {different} differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
