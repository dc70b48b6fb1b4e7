"""The finetune stage's entry. It says that it is alive before the imports, which take seconds, and then hands over."""

from __future__ import annotations

from core.stages.base import Outcome, StageContext


def finetune(context: StageContext) -> Outcome:
    """Fine-tune the model on the conversations and leave the model folder of this run."""
    if context.plan["derived"]["processes"] == 1:
        print("loading PyTorch, transformers and trl", flush=True)
    from core.train.sft import run_finetuning

    return run_finetuning(context)
