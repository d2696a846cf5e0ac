"""The decoder: Qwen3-style blocks (RMSNorm, QK-norm, SwiGLU, grouped-query attention, RoPE).

RoPE has the frequency scaling of Llama 3.

Shape suffixes: B batch, S sequence, D width, H query heads, K key-value heads, E head dimension,
V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from isoflop.shapes import ModelShape
from isoflop.training.loss import token_losses

NORM_EPS = 1e-6
EMBEDDING_STD = 0.02
ROPE_FACTOR, ROPE_LOW_FREQ_FACTOR, ROPE_HIGH_FREQ_FACTOR = 8.0, 1.0, 4.0
ROPE_ORIGINAL_CONTEXT = 8192


class Decoder(nn.Module):
    """Causal language model of a planned shape.

    `forward` maps ids (B, S) to logits (B, S, V), `losses` maps ids and targets to losses.

    Weights are drawn on construction from the default generator. They are normal with standard
    deviation 1 / sqrt(fan in), smaller by sqrt(2 layers) for the projections back into the residual
    stream, and 0.02 for the embedding. The head starts at zero, so that the first loss is ln V at
    every width.

    Args:
        shape: shape of the model.
        checkpointing: keep only the input of each block and compute the block again in the
            backward pass.
    """

    cos_SE: Tensor  # noqa: N815
    sin_SE: Tensor  # noqa: N815

    def __init__(self, shape: ModelShape, checkpointing: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.checkpointing = checkpointing
        self.embedding = nn.Embedding(shape.vocab_size, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, eps=NORM_EPS)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        self._initialise()
        if shape.tied:
            self.head.weight = self.embedding.weight
        cos_SE, sin_SE = rope_tables(shape.seq_len, shape.head_dim, shape.rope_theta)
        self.register_buffer("cos_SE", cos_SE, persistent=False)
        self.register_buffer("sin_SE", sin_SE, persistent=False)
        self._token_losses = token_losses

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Return the logits (B, S, V) of ids (B, S)."""
        return self.head(self._hidden(ids_BS))

    def losses(
        self, ids_BS: Tensor, targets_BS: Tensor, z_loss: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """Return `loss.token_losses` of the targets, (B x S,) each: without and with the z-loss."""
        return self._token_losses(
            self._hidden(ids_BS).flatten(0, 1), self.head.weight, targets_BS.flatten(), z_loss
        )

    def compile_parts(self) -> None:
        """Compile a block, once for all blocks, and the head with its loss.

        Each batch size gets separate code, so that results do not depend on earlier batch sizes.
        """
        for block in self.blocks:
            block.compile(dynamic=False)
        self._token_losses = torch.compile(token_losses, dynamic=False)

    def _hidden(self, ids_BS: Tensor) -> Tensor:
        length = ids_BS.shape[1]
        rope = (self.cos_SE[:length], self.sin_SE[:length])
        x_BSD = self.embedding(ids_BS)
        for block in self.blocks:
            if self.checkpointing and self.training:
                x_BSD = checkpoint(block, x_BSD, rope, use_reentrant=False)
            else:
                x_BSD = block(x_BSD, rope)
        return self.norm(x_BSD)

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                residual = name.endswith(("attention.output", "mlp.down"))
                scale = 1 / math.sqrt(2 * self.shape.layers) if residual else 1.0
                nn.init.normal_(module.weight, std=scale / math.sqrt(module.in_features))
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        if not self.shape.tied:
            nn.init.zeros_(self.head.weight)


class RMSNorm(nn.RMSNorm):
    """RMSNorm with its weight in the input's type, for the fused kernel of bf16 under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (..., features) over its root mean square, times the weight; same shape."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class Block(nn.Module):
    """Attention and MLP, each on a normalised copy of the residual stream."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.width, eps=NORM_EPS)
        self.attention = Attention(shape)
        self.mlp_norm = RMSNorm(shape.width, eps=NORM_EPS)
        self.mlp = MLP(shape)

    def forward(self, x_BSD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the residual stream (B, S, D) after the block.

        `rope` is cosines and sines, (S, E) each.
        """
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), rope)
        return x_BSD + self.mlp(self.mlp_norm(x_BSD))


class Attention(nn.Module):
    """Causal grouped-query attention with RMS-normalised queries and keys."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.head_dim = shape.head_dim
        self.grouped = shape.kv_heads != shape.heads
        self.query = nn.Linear(shape.width, shape.heads * shape.head_dim, bias=False)
        self.key = nn.Linear(shape.width, shape.kv_heads * shape.head_dim, bias=False)
        self.value = nn.Linear(shape.width, shape.kv_heads * shape.head_dim, bias=False)
        self.output = nn.Linear(shape.heads * shape.head_dim, shape.width, bias=False)
        self.query_norm = RMSNorm(shape.head_dim, eps=NORM_EPS)
        self.key_norm = RMSNorm(shape.head_dim, eps=NORM_EPS)

    def forward(self, x_BSD: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Return the attention's output (B, S, D) for its normalised input (B, S, D).

        `rope` is cosines and sines, (S, E) each.
        """
        q_BHSE = rotate(self.query_norm(self._heads(self.query(x_BSD))), rope)
        k_BKSE = rotate(self.key_norm(self._heads(self.key(x_BSD))), rope)
        v_BKSE = self._heads(self.value(x_BSD))
        y_BHSE = F.scaled_dot_product_attention(
            q_BHSE, k_BKSE, v_BKSE, is_causal=True, enable_gqa=self.grouped
        )
        return self.output(y_BHSE.transpose(1, 2).flatten(2))

    def _heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.unflatten(2, (-1, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """Gated MLP with SiLU (SwiGLU)."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.up = nn.Linear(shape.width, shape.mlp_width, bias=False)
        self.down = nn.Linear(shape.mlp_width, shape.width, bias=False)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Return the MLP's output (B, S, D) for its normalised input (B, S, D)."""
        return self.down(F.silu(self.gate(x_BSD)) * self.up(x_BSD))


def rotate(x_BHSE: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Apply the rotary position embedding; component i is paired with i + E/2."""
    cos_SE, sin_SE = rope
    return (x_BHSE * cos_SE + x_BHSE.roll(x_BHSE.shape[-1] // 2, dims=-1) * sin_SE).to(x_BHSE.dtype)


def rope_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (length, head_dim) with the frequency scaling of Llama 3.

    Its factor is 8, its bands are 1 and 4, its original context is 8192 tokens. The sines of the
    first half are negative, so that `rotate` needs no sign.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    turns = ROPE_ORIGINAL_CONTEXT * frequencies / (2 * math.pi)  # over the original context
    band = ROPE_HIGH_FREQ_FACTOR - ROPE_LOW_FREQ_FACTOR
    blend = ((turns - ROPE_LOW_FREQ_FACTOR) / band).clamp(0, 1)
    frequencies = frequencies * (blend + (1 - blend) / ROPE_FACTOR)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
