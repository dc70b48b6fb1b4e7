"""A program that behaves towards its log, its signals and its checkpoint folder as Megatron's pretrain_gpt.py does; our own code.

Its "model" is one number that every step changes, so that a loss tells whether the state before it was the right one. Run under the
name pretrain_gpt.py in the folder that stands for the checkout. FAKE_* in the environment make it misbehave.
"""

import argparse
import os
import pathlib
import signal
import sys
import time
import zipfile

sys.path.insert(0, os.environ["FAKE_FORMATS"])
from log_format import iteration, validation

parser = argparse.ArgumentParser()
for name in (
    "num-layers",
    "train-tokens",
    "seq-length",
    "global-batch-size",
    "log-interval",
    "eval-interval",
    "save-interval",
):
    parser.add_argument(f"--{name}", type=int)
parser.add_argument("--load", type=pathlib.Path)
parser.add_argument("--save", type=pathlib.Path)
args, _ = parser.parse_known_args()
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))


def say(text: str) -> None:
    print(text, flush=True)


def save(step: int, state: float) -> None:
    say(f"saving checkpoint at iteration {step:7d} to {args.save}")
    folder = args.save / f"global_step{step}"
    folder.mkdir(exist_ok=True)
    names = [f"layer_{layer:02d}-model_00-model_states.pt" for layer in range(1, args.num_layers + 3)]
    for name in [*names, "mp_rank_00_model_states.pt"]:
        with zipfile.ZipFile(folder / name, "w") as file:
            file.writestr("state", repr(state))
        if os.environ.get("FAKE_DIES_SAVING") == str(step):
            os.kill(os.getpid(), signal.SIGKILL)
    (args.save / "latest").write_text(f"global_step{step}")
    say(f"  successfully saved checkpoint at iteration {step:7d} to {args.save}")
    (args.save / "latest_checkpointed_iteration.txt").write_text(str(step))


say(
    "using world size: 1, data-parallel-size: 1, sequence-parallel size: 1, tensor-model-parallel size: 1, "
    "pipeline-model-parallel size: 1 "
)
say(os.environ.get("FAKE_SAYS", ""))
step, state = 0, 7.0
if (args.load / "latest").is_file():
    folder = args.load / (args.load / "latest").read_text()
    step = int(folder.name.removeprefix("global_step"))
    with zipfile.ZipFile(folder / "mp_rank_00_model_states.pt") as file:
        state = float(file.read("state"))
    say(f"  successfully loaded checkpoint from {args.load} at iteration {step}")
else:
    say("    will not load any checkpoints and will start from random")
say("[before the start of training step] datetime: 2026-11-24 20:47:42 ")
per_step = args.global_batch_size * args.seq_length
sizes = {"batch": args.global_batch_size, "sequence": args.seq_length}
while step * per_step < args.train_tokens:
    time.sleep(float(os.environ.get("FAKE_STEP_S", "0.005")))
    step += 1
    state = state * 0.99 + (step % 7) / 100
    if step % args.log_interval == 0:
        say(iteration(step, 2 * args.train_tokens // per_step, loss=state, **sizes))  # shows twice the real end
    if step % args.eval_interval == 0:
        say(validation(step, state + 0.1))
    if asked:
        save(step, state)
        say("[exiting program after receiving SIGTERM.] datetime: 2026-11-24 20:47:44 ")
        sys.exit()
    if step % args.save_interval == 0:
        save(step, state)
    if os.environ.get("FAKE_EXITS_AT") == str(step):
        say("[exiting program after 60.0 minutes] datetime: 2026-11-24 20:47:44 ")
        sys.exit()
say("[after training is done] datetime: 2026-11-24 20:47:44 ")
save(step, state)
say(validation(step, state + 0.2, "validation"))
