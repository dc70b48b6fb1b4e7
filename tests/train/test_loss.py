import pytest
import torch
from torch.nn.functional import cross_entropy as torch_cross_entropy

from core.train import loss
from core.train.loss import LossAndGradients, chunk_loss, cross_entropy, projected_cross_entropy

ROWS, VOCAB, WIDTH = 192, 150, 24


@pytest.fixture
def problem(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, a projection with padding rows, targets; chunks that do not divide the tokens."""
    monkeypatch.setitem(loss.CHUNK_TOKENS, "cpu", 32)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(101, WIDTH, generator=random, requires_grad=True)
    weight = torch.randn(ROWS, WIDTH, generator=random, requires_grad=True)
    return hidden, weight, torch.randint(0, VOCAB, (101,), generator=random)


@pytest.mark.parametrize("compiled", [False, True])
def test_loss_and_gradients_are_pytorchs(problem: tuple[torch.Tensor, ...], compiled: bool) -> None:
    hidden, weight, targets = problem
    expected = torch_cross_entropy((hidden @ weight.t())[:, :VOCAB], targets)
    (expected * 0.25).backward()
    wanted = [hidden.grad.clone(), weight.grad.clone()]
    hidden.grad = weight.grad = None
    chunk = torch.compile(chunk_loss, dynamic=False, fullgraph=True, backend="aot_eager") if compiled else chunk_loss
    found = projected_cross_entropy(hidden, weight, targets, VOCAB, chunk=chunk)
    (found * 0.25).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close([hidden.grad, weight.grad], wanted)
    assert weight.grad[VOCAB:].abs().max() == 0.0  # rows that only pad the vocabulary


def test_bf16_products_change_the_loss_by_rounding_only(problem: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, targets = problem
    exact = projected_cross_entropy(hidden, weight, targets, VOCAB)
    rounded = projected_cross_entropy(hidden, weight, targets, VOCAB, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=2e-3)
    rounded.backward()
    assert weight.grad.dtype == torch.float32


def test_no_gradient_is_computed_where_none_is_wanted(problem: tuple[torch.Tensor, ...]) -> None:
    hidden, weight, targets = problem
    asked = []

    def spy(*arguments: object) -> LossAndGradients:
        asked.append(arguments[-1])
        return chunk_loss(*arguments)

    with torch.no_grad():
        found = projected_cross_entropy(hidden, weight, targets, VOCAB, chunk=spy)
    assert set(asked) == {False}
    torch.testing.assert_close(found, cross_entropy(hidden @ weight.t(), targets, VOCAB))
