"""The pretrain stage's entry. It says that it is alive before the imports, which take seconds, and then hands over."""

from __future__ import annotations

import time

from core.stages.base import Outcome, StageContext


def pretrain(context: StageContext) -> Outcome:
    """Train to the planned step, from the newest checkpoint of this run where there is one."""
    started = time.perf_counter()
    context.listen_for_stop()
    if context.plan["derived"]["processes"] == 1:
        print("loading PyTorch and transformers", flush=True)
    from core.train.training import run_training

    return run_training(context, started)
