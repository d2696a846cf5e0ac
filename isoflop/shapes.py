"""The shape of a model, and its parameters, training FLOPs and bytes.

Each quantity has one formula, here; the planner, the trainer, the logs and the fits use it.
Symbols in the formulas: d width, m MLP width, L layers, h query heads, k key-value heads, e head
dimension, V vocabulary size, S sequence length, B sequences in a batch. All counts are Python
integers, which do not overflow.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from isoflop.choices import ParamCount as ParamCount
from isoflop.errors import ConfigError

TRAIN_FLOPS_PER_FORWARD_FLOP = 3
"""One forward pass, and a backward pass at twice its cost."""


@dataclass(frozen=True)
class ModelShape:
    """A Qwen3-style decoder: RMSNorm, QK-norm, SwiGLU, grouped-query attention, RoPE, no biases.

    Attributes:
        width: d, the size of the residual stream.
        layers: L, the number of blocks.
        heads: h, query heads.
        kv_heads: k, key and value heads; it divides `heads`.
        head_dim: e, the size of a head; even, because RoPE turns pairs. heads * head_dim need not
            equal width.
        mlp_width: m, the inner size of the SwiGLU MLP.
        vocab_size: V, rows of the embedding and of the head.
        seq_len: S, tokens in a training window.
        tied: True if the head shares the embedding's weights.
        rope_theta: RoPE's base; small heads and short windows need a smaller base.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    seq_len: int
    tied: bool = False
    rope_theta: float = 500_000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (
                not isinstance(value, int) or isinstance(value, bool) or value < 1
            ):
                raise ConfigError(f"{field.name}: expected a whole number above 0, got {value!r}")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"kv_heads: expected a divisor of heads ({self.heads}), got {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"head_dim: expected an even number (RoPE turns pairs), got {self.head_dim}"
            )
        if not self.rope_theta > 1:
            raise ConfigError(f"rope_theta: expected a number above 1, got {self.rope_theta!r}")

    # Parameters

    def parameter_items(self) -> dict[str, int]:
        """Return the exact number of weights by part; the values add up to `params_total`.

        The large matrices are SODA's formula with the real head dimension. The norms, which that
        formula counts only in part, are two RMSNorms of d and two QK-norms of e in each layer, and
        a final RMSNorm of d.
        """
        d, e = self.width, self.head_dim
        return {
            "embedding": self.vocab_size * d,
            "head": 0 if self.tied else self.vocab_size * d,
            "attention": self.layers * 2 * d * e * (self.heads + self.kv_heads),
            "mlp": self.layers * 3 * d * self.mlp_width,
            "block_norms": self.layers * 2 * d,
            "qk_norms": self.layers * 2 * e,
            "final_norm": d,
        }

    @property
    def params_total(self) -> int:
        """All weights: embedding and head both count (once if tied). The N of SODA's fit."""
        return sum(self.parameter_items().values())

    @property
    def params_one_embedding(self) -> int:
        """Weights without the head, with one embedding: the N in the names of SODA's suite."""
        return self.params_total - self.parameter_items()["head"]

    @property
    def params_non_embedding(self) -> int:
        """Weights without embedding and head."""
        return self.params_one_embedding - self.parameter_items()["embedding"]

    # FLOPs

    def flops_items(self) -> dict[str, int]:
        """Return the forward FLOPs per token by part; they add up to `forward_flops_per_token`.

        SODA's accounting (Levanter's lm_flops_per_token), with the real head dimension in the
        output projection too. A multiply-add is 2 FLOPs. Attention counts in full, S x S with no
        causal halving, with 3 FLOPs per score for scale, mask and softmax. Embedding look-up,
        norms, RoPE and the SwiGLU's element-wise product do not count.
        """
        d, h, k, e = self.width, self.heads, self.kv_heads, self.head_dim
        return {
            "mlp": self.layers * 6 * d * self.mlp_width,
            "qkv": self.layers * 2 * d * e * (h + 2 * k),
            "output": self.layers * 2 * h * e * d,
            "scores": self.layers * 2 * h * e * self.seq_len,
            "softmax": self.layers * 3 * h * self.seq_len,
            "values": self.layers * 2 * h * e * self.seq_len,
            "head": 2 * d * self.vocab_size,
        }

    @property
    def forward_flops_per_token(self) -> int:
        """FLOPs of a forward pass per token of a window of `seq_len` tokens."""
        return sum(self.flops_items().values())

    @property
    def train_flops_per_token(self) -> int:
        """FLOPs of a training step per token: 3 x forward. Budgets are in this unit."""
        return TRAIN_FLOPS_PER_FORWARD_FLOP * self.forward_flops_per_token

    # Bytes

    def weight_bytes(self, bytes_per_param: int = 4) -> int:
        """Return the bytes of the weights, or of gradients; 4 per parameter in fp32, 2 in bf16."""
        return self.params_total * bytes_per_param

    def optimizer_bytes(self, bytes_per_param: int = 8) -> int:
        """Return the bytes of the optimizer's state; 8 per parameter for Adam's moments in fp32."""
        return self.params_total * bytes_per_param

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes of a checkpoint on disk: 16 per parameter.

        Weights and two moments in fp32 take 12; 4 are a reserve. The final weights take
        `weight_bytes()`.
        """
        return self.params_total * 16

    def activation_items(
        self,
        micro_batch: int,
        bytes_per_value: int = 2,
        *,
        checkpointing: bool = False,
        compiled: bool = True,
    ) -> dict[str, int]:
        """Return the estimated bytes of activations for `micro_batch` sequences, by part.

        Activations are the values stored for the backward pass. Values per token in a layer: 4d for
        the residual stream and its normed copies at both sub-blocks; 3he + 3ke for queries and keys
        before and after QK-norm and RoPE, values, and attention's output; 4m for gate, up,
        activated gate and product. Scores are not stored, because attention is computed in blocks.
        The head stores its logits and their gradient (only one of them on an H200, where the
        gradient replaced the logits). A head that is not `compiled` needs 16 more bytes per logit
        for the loss's copies in fp32. Measured memory (`isoflop calibrate`) replaces this estimate.

        With `checkpointing`, only the input of each layer is stored, and the rest for one layer at
        a time.
        """
        tokens = micro_batch * self.seq_len
        values = tokens * bytes_per_value
        layers = 1 if checkpointing else self.layers
        return {
            "inputs": values * self.layers * self.width if checkpointing else 0,
            "residual": values * layers * 4 * self.width,
            "attention": values * layers * 3 * self.head_dim * (self.heads + self.kv_heads),
            "mlp": values * layers * 4 * self.mlp_width,
            "logits": tokens * self.vocab_size * (2 * bytes_per_value + (0 if compiled else 16)),
        }

    def activation_bytes(
        self,
        micro_batch: int,
        bytes_per_value: int = 2,
        *,
        checkpointing: bool = False,
        compiled: bool = True,
    ) -> int:
        """Return the estimated bytes of activations: the sum of `activation_items`."""
        items = self.activation_items(
            micro_batch, bytes_per_value, checkpointing=checkpointing, compiled=compiled
        )
        return sum(items.values())
