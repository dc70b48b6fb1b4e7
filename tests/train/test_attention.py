import pytest
import torch
from transformers import AttentionInterface

from core.errors import StageError
from core.model import ModelSection
from core.train.attention import causal_attention, check_causality
from core.train.model import build_model, model_config
from core.train.vocabulary import Vocabulary

CONFIGS = {
    family: model_config(
        ModelSection(
            family=family,
            layers=2,
            hidden_size=64,
            heads=4,
            kv_heads=2 if family == "llama" else None,
            sequence_length=64,
        ),
        Vocabulary(size=300, bos=1, eos=2, pad=3, eod=6),
        320,
    )
    for family in ("llama", "gpt2")
}


@pytest.mark.parametrize("family", CONFIGS)
def test_it_computes_what_transformers_own_attention_does(family: str) -> None:
    model = build_model(CONFIGS[family], seed=1).eval()
    tokens = torch.randint(0, 300, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = model(input_ids=tokens, use_cache=False).logits
        model.set_attn_implementation("eager")
        theirs = model(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_a_causal_model_passes_the_guard(family: str) -> None:
    model = build_model(CONFIGS[family], seed=1)
    check_causality(model, 300)
    assert model.training


def test_attention_that_sees_the_future_is_caught() -> None:
    def blind(module, query, key, value, attention_mask, **_):  # type: ignore[no-untyped-def]
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("blind", blind)
    model = build_model(CONFIGS["llama"], seed=1)
    model.set_attn_implementation("blind")
    with pytest.raises(StageError, match="not causal"):
        check_causality(model, 300)


def test_a_mask_is_refused_instead_of_ignored() -> None:
    query = torch.zeros(1, 4, 8, 16)
    with pytest.raises(ValueError, match="no mask"):
        causal_attention(torch.nn.Module(), query, query, query, torch.ones(1, 1, 8, 8))
