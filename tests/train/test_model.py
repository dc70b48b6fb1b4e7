import pytest
import torch

from core.model import NAMED_SIZES, ModelSection
from core.train.model import CLASSES, build_model, layers, model_config
from core.train.vocabulary import Vocabulary

VOCABULARY = Vocabulary(size=300, bos=1, eos=2, pad=3, eod=6)


def small(**changes: object) -> ModelSection:
    return ModelSection.model_validate(
        {"layers": 2, "hidden_size": 64, "heads": 4, "sequence_length": 32} | changes  # type: ignore[operator]
    )


@pytest.mark.parametrize("size", NAMED_SIZES)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("family", "grouped"), [("llama", False), ("llama", True), ("gpt2", False)])
def test_the_model_has_as_many_parameters_as_the_plan_says(size: str, tied: bool, family: str, grouped: bool) -> None:
    heads = NAMED_SIZES[size][2]
    section = ModelSection(
        family=family, size=size, tied_embeddings=tied, kv_heads=heads // 4 if grouped else None, sequence_length=512
    )
    with torch.device("meta"):
        model = CLASSES[family](model_config(section, VOCABULARY, 32064))
    found = sum(weight.numel() for weight in model.parameters())
    assert found == section.shape().parameters(32064)
    embeddings = {id(w): w.numel() for w in (model.get_input_embeddings().weight, model.lm_head.weight)}
    positions = 512 * section.shape().hidden_size if family == "gpt2" else 0
    assert found - sum(embeddings.values()) - positions == section.shape().non_embedding_parameters()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_equal_seeds_give_equal_weights_and_the_global_generator_has_no_say(family: str) -> None:
    config = model_config(small(family=family), VOCABULARY, 320)
    torch.manual_seed(99)
    first = build_model(config, seed=1).state_dict()
    torch.manual_seed(100)
    second, other = build_model(config, seed=1).state_dict(), build_model(config, seed=2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_llama_starts_with_the_asked_spread_and_transformers_own_rules() -> None:
    model = build_model(model_config(small(init_std=0.05), VOCABULARY, 320), seed=1)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            assert weight.std().item() == pytest.approx(0.05, rel=0.1), name
        else:
            assert torch.equal(weight, torch.ones_like(weight)), name
    assert model.model.embed_tokens.weight[VOCABULARY.pad].abs().max() == 0


def test_gpt2_starts_with_smaller_residual_projections() -> None:
    model = build_model(model_config(small(family="gpt2", init_std=0.02), VOCABULARY, 320), seed=1)
    for name, weight in model.named_parameters():
        expected = 0.02 / (2 * 2) ** 0.5 if name.endswith("c_proj.weight") else 0.02
        if weight.dim() == 2:
            assert weight.std().item() == pytest.approx(expected, rel=0.1), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_whole_model_is_traced_by_torch_compile_without_a_break_or_a_mask(family: str) -> None:
    model = build_model(model_config(small(family=family), VOCABULARY, 320), seed=1)
    tokens = torch.arange(64).view(2, 32)
    plain = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return graph

    model.base_model.compile(backend=backend, fullgraph=True)
    compiled = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(compiled, plain)
    calls = [node for graph in graphs for node in graph.graph.nodes if "scaled_dot_product" in str(node.target)]
    assert len(calls) == len(layers(model))
    assert all(call.kwargs["is_causal"] is True and call.kwargs.get("attn_mask") is None for call in calls)


def test_the_dimensions_reach_the_config() -> None:
    section = small(kv_heads=2, ffn_size=96, rope_theta=5e5, norm_eps=1e-6)
    config = model_config(section, VOCABULARY, 320)
    assert (config.num_key_value_heads, config.intermediate_size, config.rms_norm_eps) == (2, 96, 1e-6)
    assert config.rope_parameters["rope_theta"] == 5e5
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id, config.use_cache) == (1, 2, 3, False)
    dropout = model_config(small(family="gpt2", dropout=0.1), VOCABULARY, 320)
    assert (dropout.resid_pdrop, dropout.embd_pdrop, dropout.attn_pdrop) == (0.1, 0.1, 0.1)
