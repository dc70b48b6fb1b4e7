"""The shape of the language model and everything that follows from it by arithmetic: parameters, FLOPs, memory.

Nothing here imports torch: the plan is computed before any GPU or training package is touched.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from core.section import Section

# name: (layers, hidden size, heads, global batch, lr, min lr, init std); the table that all scripts of the original
# pipeline share (its GPT family; ours uses it for both).
NAMED_SIZES: dict[str, tuple[int, int, int, int, float, float, float]] = {
    "125M": (12, 768, 12, 256, 6.0e-4, 1.0e-6, 0.02),
    "350M": (24, 1024, 16, 256, 3.0e-4, 1.0e-6, 0.018),
    "760M": (24, 1536, 16, 256, 2.5e-4, 1.0e-6, 0.015),
    "1.3B": (24, 2048, 16, 512, 2.0e-4, 1.0e-6, 0.013),
    "2.7B": (32, 2560, 32, 512, 1.6e-4, 1.0e-6, 0.011),
    "6.7B": (32, 4096, 32, 1024, 1.2e-4, 1.0e-6, 0.009),
    "13B": (40, 5120, 40, 1024, 1.0e-4, 1.0e-6, 0.008),
    "175B": (96, 12288, 96, 1536, 0.6e-4, 1.0e-6, 0.005),
}

SizeName = Literal["125M", "350M", "760M", "1.3B", "2.7B", "6.7B", "13B", "175B"]
PositiveInt = Annotated[int, Field(gt=0)]


class ModelSection(Section):
    """The model's shape: a named size, or explicit dimensions; a dimension given beside a size replaces the table's."""

    family: Literal["llama", "gpt2"] = "llama"
    """llama (RMSNorm, SwiGLU, rotary positions) or gpt2 (LayerNorm, GELU, learned positions); transformers' own code."""
    size: SizeName | None = None
    """A row of the original pipeline's table, 125M to 175B; leave empty to give the dimensions yourself."""
    layers: PositiveInt | None = None
    """Number of transformer layers."""
    hidden_size: PositiveInt | None = None
    """Width of the residual stream; must be a multiple of `heads`."""
    heads: PositiveInt | None = None
    """Number of attention heads."""
    kv_heads: PositiveInt | None = None
    """Number of key/value heads (grouped-query attention, llama only); equal to `heads` when empty."""
    ffn_size: PositiveInt | None = None
    """Width of the feed-forward layer; when empty 4 x hidden for gpt2, 8/3 x hidden rounded up to 64 for llama."""
    sequence_length: Annotated[int, Field(ge=8, le=1_048_576)] = 2048
    """Tokens in one training sequence, and the longest input the model accepts."""
    tied_embeddings: bool = True
    """Whether the output projection shares the input embedding's weights."""
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    """Base of the rotary position frequencies (llama only)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of attention and residual connections (gpt2 only)."""
    init_std: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of the initial weights; the table's for a named size, else 0.02."""
    norm_eps: Annotated[float, Field(gt=0)] = 1.0e-5
    """Epsilon of the normalisation layers."""
    pad_vocab_to: PositiveInt = 64
    """The embedding is padded to a multiple of this many rows while training; convert removes the padding."""

    @model_validator(mode="after")
    def _dimensions_fit(self) -> ModelSection:
        shape = self.shape()
        if shape.hidden_size % shape.heads:
            below = shape.hidden_size // shape.heads * shape.heads
            raise ValueError(
                f"hidden_size {shape.hidden_size} is not a multiple of heads {shape.heads}; "
                f"set model.hidden_size to {below or shape.heads} or {below + shape.heads}, or change model.heads"
            )
        if self.family == "llama" and (shape.hidden_size // shape.heads) % 2:
            raise ValueError(
                f"hidden_size / heads is {shape.hidden_size // shape.heads}; rotary positions need an even number"
            )
        if shape.heads % shape.kv_heads:
            raise ValueError(f"heads {shape.heads} is not a multiple of kv_heads {shape.kv_heads}")
        if self.family == "gpt2" and shape.kv_heads != shape.heads:
            raise ValueError("kv_heads is for the llama family only; remove model.kv_heads")
        return self

    def shape(self) -> ModelShape:
        """The dimensions with the named size and the defaults filled in.

        Raises:
            ValueError: neither a size nor layers, hidden_size and heads are given.
        """
        row = NAMED_SIZES[self.size] if self.size else (None, None, None, None, None, None, None)
        layers, hidden, heads = self.layers or row[0], self.hidden_size or row[1], self.heads or row[2]
        if layers is None or hidden is None or heads is None:
            raise ValueError("give model.size, or model.layers, model.hidden_size and model.heads")
        default_ffn = 4 * hidden if self.family == "gpt2" else -(-8 * hidden // (3 * 64)) * 64
        return ModelShape(
            family=self.family,
            layers=layers,
            hidden_size=hidden,
            heads=heads,
            kv_heads=self.kv_heads or heads,
            ffn_size=self.ffn_size or default_ffn,
            sequence_length=self.sequence_length,
            tied_embeddings=self.tied_embeddings,
            init_std=self.init_std or row[6] or 0.02,
        )


class ModelShape(Section):
    """A model's dimensions, all known, and the arithmetic on them."""

    family: Literal["llama", "gpt2"]
    """llama or gpt2."""
    layers: int
    """Number of layers (L)."""
    hidden_size: int
    """Width (d)."""
    heads: int
    """Attention heads."""
    kv_heads: int
    """Key/value heads."""
    ffn_size: int
    """Feed-forward width."""
    sequence_length: int
    """Sequence length (T)."""
    tied_embeddings: bool
    """Whether the output projection is the input embedding."""
    init_std: float
    """Initial standard deviation."""

    def parameters(self, vocab_size: int) -> int:
        """All parameters, embeddings included; `vocab_size` counts padded rows. Tied weights count once."""
        d, positions = self.hidden_size, self.sequence_length if self.family == "gpt2" else 0
        embeddings = vocab_size * d * (1 if self.tied_embeddings else 2) + positions * d
        return embeddings + self.non_embedding_parameters()

    def non_embedding_parameters(self) -> int:
        """Parameters of the layers and the final normalisation."""
        d, f = self.hidden_size, self.ffn_size
        if self.family == "gpt2":
            attention, ffn, norms = 4 * d * d + 4 * d, 2 * d * f + f + d, 4 * d
            return self.layers * (attention + ffn + norms) + 2 * d
        kv = d * self.kv_heads // self.heads
        return self.layers * (2 * d * d + 2 * d * kv + 3 * d * f + 2 * d) + d

    def flops_per_token(self, vocab_size: int) -> int:
        """Training FLOPs of one token, forward and backward: 6 N + 12 L d T.

        N counts every matrix a token passes through: the layers and the output projection, not the input embedding
        (PaLM, appendix B; the second term is attention without the causal halving, as published MFU figures count).
        """
        n = self.non_embedding_parameters() + vocab_size * self.hidden_size
        return 6 * n + 12 * self.layers * self.hidden_size * self.sequence_length
