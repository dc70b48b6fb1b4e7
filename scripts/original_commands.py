"""Runs the original pipeline's own shell scripts, with fakes for what they start, and compares each command word by word with what the
preset that stands for it plans.

    python scripts/original_commands.py UCLLM_NEDO_PROD/train/scripts [--checkout MEGATRON_DEEPSPEED]

Every pretraining script is run once for each size of its table, with that size's block uncommented. Under megatron.strict_original the
plan must be equal; what it does otherwise without is printed. With --checkout the DeepSpeed configurations are compared too: their
template lies there. Then come the scripts of the other steps (original_finetune_commands.py). Nothing is trained or fetched. Exits
with 1 where anything differs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import original_finetune_commands as others

TABLE = Path(__file__).parents[1] / "tests" / "megatron" / "test_original_presets.py"
BLOCK = re.compile(
    r"(?:# )?((?:model_size|num_layers|hidden_size|num_attn_heads|global_batch_size|lr|min_lr|init_std)=.*)"
)
TEMPLATE = "examples_deepspeed/rebase/ds_config_gpt_TEMPLATE.json"
MEGATRON = "$HOME/ucllm_nedo_dev/train/Megatron-DeepSpeed"

_spec = importlib.util.spec_from_file_location("pretraining", TABLE)  # another test has the same name
assert _spec is not None
assert _spec.loader is not None
pretraining = importlib.util.module_from_spec(_spec)
sys.modules["pretraining"] = pretraining
_spec.loader.exec_module(pretraining)


def with_size(text: str, model_size: str) -> str:
    """The script with the block of this size uncommented, and no other."""
    lines, chosen = [], False
    for line in text.splitlines():
        if match := BLOCK.fullmatch(line):
            chosen = match[1] == f"model_size={model_size}" if match[1].startswith("model_size=") else chosen
            line = match[1] if chosen else f"# {match[1]}"
        lines.append(line)
    return "\n".join(lines) + "\n"


def prepared(scripts: Path, folder: Path, path: str, size: str, checkout: Path | None) -> None:
    """The script in `folder`, with what it expects around it: a checkout with token files, and the variables of its scheduler."""
    script = pretraining.SCRIPTS[next(name for name in pretraining.SCRIPTS if pretraining.SCRIPTS[name].path == path)]
    text = with_size((scripts / "step2_pretrain_model" / path).read_text(), pretraining.SIZES[size][0])
    for tokens in script.folders:
        text = text.replace(f'"{tokens}"', f'"{folder}{tokens}"')
    for name, length in pretraining.token_files(script).items():
        file = Path(f"{folder}{name}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(length))
    template = f"cp {checkout / TEMPLATE} {MEGATRON}/{TEMPLATE}" if checkout else f"touch {MEGATRON}/{TEMPLATE}"
    around = (
        f"export NHOSTS={script.nodes} SLURM_JOB_NUM_NODES={script.nodes}\ntouch $HOME/.bashrc\n"
        f"mkdir -p {MEGATRON}/dataset {MEGATRON}/{Path(TEMPLATE).parent}\n{template}\n"
        f"touch {MEGATRON}/dataset/arxiv_text_document.bin {MEGATRON}/dataset/arxiv_text_document.idx\n"
    )
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(around + text)


def compare_pretraining(scripts: Path, checkout: Path | None) -> Iterator[tuple[bool, str]]:
    for name, script in pretraining.SCRIPTS.items():
        corrections: list[str] = []
        for size in pretraining.SIZES:
            with tempfile.TemporaryDirectory(prefix="original-") as temporary:
                folder = Path(temporary)
                prepared(scripts, folder, script.path, size, checkout)
                arguments = [
                    "--input_tokenizer_file",
                    pretraining.TOKENIZER,
                    "--output_model_dir",
                    "HOME_FOLDER/output/",
                ]
                arguments += ["--wandb_entity", "team", "--wandb_project", "llm"]
                started = others.start(folder, script.path, arguments, script.gpus)
                train = started.home / "ucllm_nedo_dev" / "train"
                places = {
                    str(train / "Megatron-DeepSpeed"): pretraining.CHECKOUT,
                    str(started.home / "output"): pretraining.OUTPUT,
                }
                words = started.words(0, **places, **{str(folder): ""})
                strict = pretraining.planned(name, size, "megatron.strict_original=true")
                equal = words == pretraining.words(strict) == pretraining.expected(script, size)
                if checkout:
                    written = json.loads(next((started.home / "output" / "deepspeed_config").iterdir()).read_text())
                    equal = equal and written == strict.derived["ds_config"]
                corrections = [entry["what"] for entry in pretraining.planned(name, size).derived["corrections"]]
                shutil.rmtree(started.home)
                yield equal, f"{len(words):3} words  {size:<5} {name}"
        yield True, f"           otherwise corrected: {', '.join(corrections)}"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("scripts", type=Path, help="train/scripts of the original")
    parser.add_argument(
        "--checkout", type=Path, help="a Megatron-DeepSpeed checkout, for the template of its ds_config"
    )
    options = parser.parse_args(argv)
    compared = different = 0
    for equal, text in compare_pretraining(options.scripts, options.checkout):
        print(f"{'equal' if equal else 'DIFFERS':<8} {text}" if " words " in text else text, flush=True)
        compared += " words " in text
        different += not equal
    print(f"{compared} commands of {len(pretraining.SCRIPTS)} pretraining scripts compared, {different} differ")
    return others.main([str(options.scripts)]) or (1 if different else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
