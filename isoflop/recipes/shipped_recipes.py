"""The shipped recipes: constants of their rules, each with its source.

"SODA's sweep" is the code of the IsoFLOP study of arXiv 2602.16687 (marin-community/marin,
experiments/audio).
"""

from __future__ import annotations

import math

from isoflop.recipes.rules import BatchRule, Beta2Rule, LearningRateRule, Recipe, RecipeLike


def soda_depth(width: int) -> int:
    """Return round(d / (64 + 4 log2(d) - 7)), at least 1. Source: SODA's sweep."""
    return max(1, round(width / (64 + 4 * math.log2(width) - 7)))


def soda_heads(width: int) -> int:
    """Return max(1, d // 128). Source: SODA's sweep."""
    return max(1, width // 128)


SODA = Recipe(
    name="soda",
    version=1,
    depth=soda_depth,
    heads=soda_heads,
    head_dim=128,
    mlp_ratio=4,
    batch=BatchRule(
        target_steps=65_536, rounding="up", source="SODA's sweep: a power of two, ceiling"
    ),
    lr=LearningRateRule(
        coefficient=0.33,
        batch_power=0.5,
        width_power=-1.0,
        unit="sequences",
        cap=0.01,
        halve_batch=True,
        source="SODA's sweep: 0.33 sqrt(B) / d, B halved while above 0.01",
    ),
    beta2=Beta2Rule(
        base=0.98, reference=128, unit="sequences", source="SODA's sweep: 0.98^(B/128)"
    ),
    sources={
        "depth": "SODA's sweep: round(d / (64 + 4 log2 d - 7))",
        "heads": "SODA's sweep: d // 128 of size 128, as many for keys and values",
        "mlp_ratio": "SODA's sweep: m = 4d",
    },
)
"""The rules of SODA's IsoFLOP study and its 64 runs."""


def pocket_depth(width: int) -> int:
    """Return max(2, round(d / 64)).

    The models of a pocket study thus differ only in width, so that its profiles are smooth.
    """
    return max(2, round(width / 64))


def pocket_heads(width: int) -> int:
    """Return the number of heads of size 8 that are together at least as wide as the model."""
    return math.ceil(width / 8)


POCKET = Recipe(
    name="pocket",
    version=4,
    depth=pocket_depth,
    heads=pocket_heads,
    head_dim=8,
    mlp_ratio=4,
    batch=BatchRule(
        target_steps=1500,
        rounding="whole",
        source="near the best of 550 to 2200 steps, and even over sizes (analysis/NOTES.md)",
    ),
    lr=LearningRateRule(
        coefficient=0.022,
        batch_power=0.4,
        width_power=-0.5,
        unit="sequences",
        cap=0.03,
        halve_batch=False,
        source=(
            "tuned at nine points, widths 4 to 64, batches of 1 to 59 x 128 tokens"
            " (analysis/NOTES.md)"
        ),
    ),
    beta2=Beta2Rule(
        base=0.98,
        reference=1,
        unit="sequences",
        power=0,
        source="tuned at width 32 (analysis/NOTES.md)",
    ),
    sources={
        "depth": "two layers up to width 159: one family, without steps in depth",
        "heads": (
            "8 is the smallest head that RoPE serves well; fewer and wider ones lose"
            " (analysis/NOTES.md)"
        ),
        "mlp_ratio": "SODA's 4",
    },
    rope_theta=100.0,
)
"""Rules for small vocabularies and shallow models, which a CPU trains in minutes."""


RECIPES: dict[str, RecipeLike] = {recipe.name: recipe for recipe in (SODA, POCKET)}
"""The shipped recipes by name."""
