"""The decoder: size and cost against the planner, causality, and modules against their papers."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from isoflop.shapes import ModelShape
from isoflop.training.model import NORM_EPS, Decoder, rope_tables, rotate

PLAIN = ModelShape(
    width=16, layers=2, heads=4, kv_heads=4, head_dim=4, mlp_width=40, vocab_size=50, seq_len=24
)
# The width is not heads * head_dim.
GROUPED = dataclasses.replace(PLAIN, heads=6, kv_heads=2, head_dim=8)
TIED = dataclasses.replace(GROUPED, layers=3, tied=True)
ONE_KEY = ModelShape(
    width=8, layers=1, heads=3, kv_heads=1, head_dim=2, mlp_width=6, vocab_size=514, seq_len=7
)
SHAPES = [PLAIN, GROUPED, TIED, ONE_KEY]
BATCH = 3


def decoder(shape: ModelShape, seed: int = 0) -> Decoder:
    """Return a decoder in which every weight has an effect: no head is zero, no norm is one."""
    torch.manual_seed(seed)
    model = Decoder(shape)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model


def draw_ids(shape: ModelShape, seed: int = 1) -> Tensor:
    return torch.randint(
        shape.vocab_size, (BATCH, shape.seq_len), generator=torch.Generator().manual_seed(seed)
    )


# Size and cost

PARTS = {
    "embedding": ("embedding",),
    "head": ("head",),
    "attention": ("query.weight", "key.weight", "value.weight", "output.weight"),
    "mlp": ("gate", "up", "down"),
    "block_norms": ("attention_norm", "mlp_norm"),
    "qk_norms": ("query_norm", "key_norm"),
    "final_norm": ("norm.weight",),
}


def is_in_part(name: str, item: str) -> bool:
    if item == "final_norm":
        return name == "norm.weight"
    return any(f".{module}" in f".{name}" for module in PARTS[item])


@pytest.mark.parametrize("shape", SHAPES)
def test_every_part_has_the_planned_parameters(shape: ModelShape) -> None:
    counts = dict.fromkeys(PARTS, 0)
    for name, weight in Decoder(shape).named_parameters():
        (item,) = [item for item in PARTS if is_in_part(name, item)]
        counts[item] += weight.numel()
    assert counts == shape.parameter_items()


def counted(shape: ModelShape, backward: bool) -> dict[str, float]:
    """Return torch's FLOPs per token by module and in total, for the math kernel of attention."""
    model, ids = decoder(shape), draw_ids(shape)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logits = model(ids)
        if backward:
            F.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    return {
        name: sum(flops.values()) / ids.numel() for name, flops in counter.get_flop_counts().items()
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_forward_flops_are_torchs_and_three_per_score(shape: ModelShape) -> None:
    counts, planned = counted(shape, backward=False), shape.flops_items()

    def layers(*names: str) -> float:
        return sum(
            counts[f"Decoder.blocks.{layer}.{name}"]
            for layer in range(shape.layers)
            for name in names
        )

    projections = ("attention.query", "attention.key", "attention.value")
    assert layers("mlp") == planned["mlp"]
    assert layers(*projections) == planned["qkv"]
    assert layers("attention.output") == planned["output"]
    scores_and_values = layers("attention") - layers(*projections, "attention.output")
    assert scores_and_values == planned["scores"] + planned["values"]
    assert counts["Decoder.head"] == planned["head"]
    # The only difference: torch counts matrix products alone, the plan also scale, mask and
    # softmax, which are 3 h S a layer.
    assert planned["softmax"] == 3 * shape.heads * shape.seq_len * shape.layers
    assert counts["Global"] == shape.forward_flops_per_token - planned["softmax"]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_backward_pass_costs_two_forward_passes(shape: ModelShape) -> None:
    # Every matrix product has two in its backward pass, also in the first layer: its input is the
    # embedding, which learns. The embedding's gradient is an addition of rows, which neither side
    # counts.
    assert counted(shape, backward=True)["Global"] == 3 * (
        shape.forward_flops_per_token - shape.flops_items()["softmax"]
    )


# Function


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_depend_on_no_later_token(shape: ModelShape) -> None:
    model, ids = decoder(shape), draw_ids(shape)
    before = model(ids)
    for position in (1, shape.seq_len // 2, shape.seq_len - 1):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % shape.vocab_size
        after = model(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        assert not torch.isclose(after[:, position:], before[:, position:]).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shorter_window_is_the_beginning_of_a_longer_one(shape: ModelShape) -> None:
    model, ids = decoder(shape), draw_ids(shape)
    torch.testing.assert_close(model(ids[:, :5]), model(ids)[:, :5])


@pytest.mark.parametrize("shape", SHAPES)
def test_checkpointing_changes_no_gradient(shape: ModelShape) -> None:
    gradients = []
    for checkpointing in (False, True):
        model, ids = decoder(shape), draw_ids(shape)
        model.checkpointing = checkpointing
        F.cross_entropy(model(ids).flatten(0, 1), ids.flatten()).backward()
        gradients.append([weight.grad for weight in model.parameters()])
    assert all(torch.equal(plain, redone) for plain, redone in zip(*gradients, strict=True))


def test_checkpointing_saves_less_for_the_backward_pass() -> None:
    shape = dataclasses.replace(PLAIN, layers=6)
    saved = []
    for checkpointing in (False, True):
        model, sizes = decoder(shape), []
        model.checkpointing = checkpointing

        def pack(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(draw_ids(shape))
        saved.append(sum(sizes))
    assert saved[1] < 0.5 * saved[0]


def test_grouped_attention_is_full_attention_with_repeated_heads() -> None:
    grouped = decoder(GROUPED)
    full = Decoder(dataclasses.replace(GROUPED, kv_heads=GROUPED.heads))
    weights = grouped.state_dict()
    for name, weight in weights.items():
        if name.endswith(("key.weight", "value.weight")):
            heads = weight.unflatten(0, (GROUPED.kv_heads, GROUPED.head_dim))
            weights[name] = heads.repeat_interleave(GROUPED.heads // GROUPED.kv_heads, 0).flatten(
                0, 1
            )
    full.load_state_dict(weights)
    ids = draw_ids(GROUPED)
    torch.testing.assert_close(full(ids), grouped(ids))


def test_a_tied_head_is_the_embedding() -> None:
    model = Decoder(TIED)
    assert model.head.weight is model.embedding.weight
    assert model.embedding.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("shape", [PLAIN, GROUPED, ONE_KEY])
def test_the_first_loss_is_that_of_a_guess(shape: ModelShape) -> None:
    torch.manual_seed(0)
    ids = draw_ids(shape)
    loss = F.cross_entropy(Decoder(shape)(ids).flatten(0, 1), ids.flatten())
    assert loss.item() == pytest.approx(math.log(shape.vocab_size), rel=1e-6)


def test_weights_start_at_the_scale_of_their_fan_in() -> None:
    torch.manual_seed(0)
    shape = ModelShape(
        width=256,
        layers=2,
        heads=4,
        kv_heads=2,
        head_dim=32,
        mlp_width=512,
        vocab_size=99,
        seq_len=8,
    )
    block = Decoder(shape).blocks[1]
    expected = {
        "attention.query": 256**-0.5,
        "attention.value": 256**-0.5,
        "attention.output": 128**-0.5 / 2,  # into the residual stream: smaller by sqrt(2 layers)
        "mlp.gate": 256**-0.5,
        "mlp.down": 512**-0.5 / 2,
    }
    for name, scale in expected.items():
        weight = block.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert weight.std().item() == pytest.approx(scale, rel=0.03), name


def test_the_same_seed_gives_the_same_model() -> None:
    first, second, other = (decoder(PLAIN, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


@pytest.mark.parametrize("shape", [PLAIN, GROUPED])
def test_bf16_autocast_gives_nearly_the_same_loss_and_trains(shape: ModelShape) -> None:
    model, ids = decoder(shape), draw_ids(shape)
    exact = F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(ids)
    assert logits.dtype == torch.bfloat16
    loss = F.cross_entropy(logits.flatten(0, 1).float(), ids.flatten())
    loss.backward()
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    assert all(
        weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters()
    )


# Rotary embedding


def published_frequency(index: int, head_dim: int) -> float:
    """Return the frequency of Llama 3.1's published rope_scaling: by wavelength, in three bands."""
    frequency = 1 / 500_000.0 ** (2 * index / head_dim)
    wavelength = 2 * math.pi / frequency
    if wavelength < 8192 / 4:
        return frequency
    if wavelength > 8192 / 1:
        return frequency / 8
    smooth = (8192 / wavelength - 1) / (4 - 1)
    return (1 - smooth) * frequency / 8 + smooth * frequency


@pytest.mark.parametrize("head_dim", [2, 8, 64, 128])
def test_angles_are_those_of_llama_3(head_dim: int) -> None:
    cos_SE, sin_SE = rope_tables(4096, head_dim, theta=500_000.0)
    assert cos_SE.shape == sin_SE.shape == (4096, head_dim)
    for index in range(head_dim // 2):
        for position in (0, 1, 2, 4095):
            angle = position * published_frequency(index, head_dim)
            for column, sign in ((index, -1), (index + head_dim // 2, 1)):
                assert cos_SE[position, column].item() == pytest.approx(math.cos(angle), abs=1e-6)
                assert sin_SE[position, column].item() == pytest.approx(
                    sign * math.sin(angle), abs=1e-6
                )


def test_the_bands_of_the_scaling_at_head_dim_128() -> None:
    ratios = [published_frequency(index, 128) * 500_000 ** (index / 64) for index in range(64)]
    assert ratios[:29] == pytest.approx([1.0] * 29)
    assert ratios[35:] == pytest.approx([1 / 8] * 29)
    assert all(1 / 8 < ratio < 1 for ratio in ratios[29:35])


def test_scores_depend_on_the_distance_only() -> None:
    rope = rope_tables(64, 16, theta=500_000.0)
    generator = torch.Generator().manual_seed(0)
    q_E, k_E = torch.randn(2, 16, generator=generator)
    q_SE, k_SE = (rotate(x_E.expand(1, 1, 64, 16), rope)[0, 0] for x_E in (q_E, k_E))
    scores_SS = q_SE @ k_SE.T
    for distance in (0, 1, 7, 40):
        diagonal = scores_SS.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(q_SE.norm(dim=-1), q_E.norm().expand(64))


# Against another implementation

QWEN3 = {
    "embedding": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "blocks": "model.layers",
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "attention": "self_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "query_norm": "q_norm",
    "key_norm": "k_norm",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}
"""Names of modules in isoflop, and in Hugging Face's transformers."""


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_qwen3(shape: ModelShape) -> None:
    """The logits are those of transformers' Qwen3 with Llama 3's RoPE and the same weights."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    other = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=shape.vocab_size,
            hidden_size=shape.width,
            intermediate_size=shape.mlp_width,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            tie_word_embeddings=shape.tied,
            rms_norm_eps=NORM_EPS,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": shape.rope_theta,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        )
    ).eval()
    model = decoder(shape)
    weights = {
        ".".join(QWEN3.get(key, key) for key in name.split(".")): weight
        for name, weight in model.state_dict().items()
    }
    other.load_state_dict(weights)
    assert other.num_parameters() == shape.params_total
    ids = draw_ids(shape)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), other(ids).logits, rtol=1e-4, atol=1e-5)
