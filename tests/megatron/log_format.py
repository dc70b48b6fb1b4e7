"""Lines of Megatron-DeepSpeed's log, made from its format strings (megatron/training.py, training_log and evaluate_and_print_results)."""

from __future__ import annotations


def iteration(
    step: int, total: int = 40, *, loss: float | None = 7.5, fp16: bool = False, batch: int = 4, sequence: int = 64
) -> str:
    """The line of a logged step; without a loss as Megatron prints it when that is not above zero."""
    line = f" iteration {step:8d}/{total:8d} | consumed samples: {step * batch:12d} |"
    line += f" consumed tokens: {step * batch * sequence:12d} | elapsed time per iteration (ms): {30.6:.1f} |"
    line += f" learning rate: {1.017e-4:.3E} | global batch size: {batch:5d} |"
    line += "" if loss is None else f" lm loss: {loss:.6E} |"
    line += f" loss scale: {2048:.1f} | grad norm: {18.604:.3f} |" if fp16 else ""
    line += f" num zeros: {0:.1f} | actual seqlen: {sequence:5d} | number of skipped iterations: {0:3d} |"
    line += f" number of nan iterations: {0:3d} | samples per second: {130.567:.3f} |"
    return line + f" tokens per gpu per second (tgs): {8356.293:.3f} | TFLOPs: {0.01:.2f} |"


def validation(step: int, loss: float, draw: str = "") -> str:
    """`draw` is "validation" or "test" for the ones after the training."""
    where = f" on 8-sample draw from {draw} set" if draw else ""
    return f" validation loss at iteration {step}{where} | lm loss value: {loss:.6E} | lm loss PPL: {1619.853:.6E} | "
