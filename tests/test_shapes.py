"""Parameters, FLOPs and bytes of a shape, against counts by hand and SODA's published figures."""

from __future__ import annotations

import dataclasses

import pytest

from isoflop.errors import ConfigError
from isoflop.shapes import ModelShape

SODA_VOCABULARY = 144_644
SUITE_TOKENS = 238_419 * 512 * 4096  # 500B: SODA's suite


def suite(
    width: int, mlp_width: int, layers: int, heads: int, kv_heads: int, head_dim: int
) -> ModelShape:
    return ModelShape(width, layers, heads, kv_heads, head_dim, mlp_width, SODA_VOCABULARY, 4096)


SUITE = {
    "135m": suite(512, 1792, 15, 8, 8, 64),
    "600m": suite(1024, 3072, 28, 16, 8, 128),
    "1.7b": suite(2048, 6144, 28, 16, 8, 128),
    "4b": suite(2560, 9728, 36, 32, 8, 128),
}
TINY = ModelShape(
    width=12,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_width=20,
    vocab_size=50,
    seq_len=16,
    tied=False,
)


def test_parameters_are_those_counted_by_hand() -> None:
    assert TINY.parameter_items() == {
        "embedding": 50 * 12,
        "head": 50 * 12,
        "attention": 2 * (12 * 24 + 12 * 12 + 12 * 12 + 24 * 12),  # q, k, v, o
        "mlp": 2 * (3 * 12 * 20),
        "block_norms": 2 * (12 + 12),
        "qk_norms": 2 * (6 + 6),
        "final_norm": 12,
    }
    assert TINY.params_total == 600 + 600 + 1728 + 1440 + 48 + 24 + 12
    assert TINY.params_one_embedding == TINY.params_total - 600
    assert TINY.params_non_embedding == TINY.params_total - 1200


def test_a_tied_head_has_no_weights_and_the_same_flops() -> None:
    tied = dataclasses.replace(TINY, tied=True)
    assert tied.params_total == tied.params_one_embedding == TINY.params_one_embedding
    assert tied.params_non_embedding == TINY.params_non_embedding
    assert tied.train_flops_per_token == TINY.train_flops_per_token


def test_flops_are_those_counted_by_hand() -> None:
    assert TINY.flops_items() == {
        "mlp": 2 * (3 * 2 * 12 * 20),
        "qkv": 2 * (2 * 12 * (24 + 12 + 12)),
        "output": 2 * (2 * 24 * 12),
        "scores": 2 * (2 * 24 * 16),
        "softmax": 2 * (3 * 4 * 16),
        "values": 2 * (2 * 24 * 16),
        "head": 2 * 12 * 50,
    }
    assert TINY.forward_flops_per_token == 2880 + 2304 + 1152 + 1536 + 384 + 1536 + 1200
    assert TINY.train_flops_per_token == 3 * TINY.forward_flops_per_token


@pytest.mark.parametrize(
    ("name", "non_embedding", "one_embedding", "total"),
    [
        ("135m", 57.0e6, 131e6, 205e6),
        ("600m", 440.5e6, 589e6, 737e6),
        ("1.7b", 1.409e9, 1.706e9, 2.00e9),
        ("4b", 3.634e9, 4.004e9, 4.37e9),
    ],
)
def test_parameters_of_the_suite(
    name: str, non_embedding: float, one_embedding: float, total: float
) -> None:
    shape = SUITE[name]
    assert shape.params_non_embedding == pytest.approx(non_embedding, rel=1e-3)
    assert shape.params_one_embedding == pytest.approx(one_embedding, rel=4e-3)
    assert shape.params_total == pytest.approx(total, rel=4e-3)


@pytest.mark.parametrize(
    ("name", "real", "published"),
    [("600m", 3.18e21, 2.2e21), ("4b", 1.57e22, 1.32e22)],
)
def test_cost_of_the_suite_with_the_real_head_dimension_and_with_sodas(
    name: str, real: float, published: float
) -> None:
    shape = SUITE[name]
    as_published = dataclasses.replace(shape, head_dim=shape.width // shape.heads)
    assert shape.train_flops_per_token * SUITE_TOKENS == pytest.approx(real, rel=4e-3)
    assert as_published.train_flops_per_token * SUITE_TOKENS == pytest.approx(published, rel=1e-2)


def test_counts_do_not_overflow() -> None:
    train_flops = SUITE["4b"].train_flops_per_token * SUITE_TOKENS
    assert isinstance(train_flops, int)
    assert train_flops > 2**63


def test_bytes() -> None:
    params = TINY.params_total
    assert TINY.weight_bytes() == 4 * params
    assert TINY.weight_bytes(2) == 2 * params
    assert TINY.optimizer_bytes() == 8 * params
    assert TINY.checkpoint_bytes == 16 * params


def test_activations_grow_with_the_micro_batch_and_their_items_add_up() -> None:
    tokens = 3 * 16
    assert TINY.activation_items(3) == {
        "inputs": 0,
        "residual": tokens * 2 * 2 * 4 * 12,
        "attention": tokens * 2 * 2 * 3 * 6 * (4 + 2),
        "mlp": tokens * 2 * 2 * 4 * 20,
        "logits": tokens * 50 * 4,
    }
    assert TINY.activation_items(3, compiled=False)["logits"] == tokens * 50 * 20
    assert TINY.activation_items(3, 4, compiled=False)["logits"] == tokens * 50 * 24
    assert (
        TINY.activation_bytes(3)
        == sum(TINY.activation_items(3).values())
        == 3 * TINY.activation_bytes(1)
    )


def test_checkpointing_keeps_the_inputs_of_the_layers_and_one_layers_rest() -> None:
    deep = dataclasses.replace(TINY, layers=10)
    checkpointed = deep.activation_items(3, checkpointing=True)
    single_layer = dataclasses.replace(TINY, layers=1).activation_items(3)
    assert checkpointed == {**single_layer, "inputs": 10 * 3 * 16 * 12 * 2}
    assert (
        deep.activation_bytes(3, checkpointing=True)
        == sum(checkpointed.values())
        < deep.activation_bytes(3)
    )


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"width": 0}, "width"),
        ({"layers": -1}, "layers"),
        ({"vocab_size": 2.0}, "vocab_size"),
        ({"seq_len": True}, "seq_len"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_dim": 7}, "head_dim"),
        ({"rope_theta": 1.0}, "rope_theta"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{key}: expected .*, got "):
        dataclasses.replace(TINY, **change)
