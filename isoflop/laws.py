"""Loss surfaces that are known: published fits, to simulate studies from and to expect results by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Surface:
    """L(N, D) = E + A / N^alpha + B / D^beta in nats per token, with C = 6 N D (Hoffmann et al. 2022, Approach 3)."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    @property
    def a(self) -> float:
        """Exponent of N*(C): beta / (alpha + beta)."""
        return self.beta / (self.alpha + self.beta)

    @property
    def b(self) -> float:
        """Exponent of D*(C): alpha / (alpha + beta)."""
        return self.alpha / (self.alpha + self.beta)

    def loss(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Loss in nats per token without noise."""
        return (
            self.E + self.A * np.power(params, -self.alpha) + self.B * np.power(tokens, -self.beta)
        )

    def optimum(self, flops: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """N* = G (C/6)^a and D* = (C/6)^b / G with G = (alpha A / (beta B))^(1 / (alpha + beta))."""
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1.0 / (self.alpha + self.beta))
        sixth = np.asarray(flops, dtype=np.float64) / 6.0
        return scale * sixth**self.a, sixth**self.b / scale


SURFACES = {
    # The optimum of Chinchilla's 240 rows as digitised by Epoch AI, Huber delta 1e-3.
    "chinchilla": Surface(E=1.8172181, A=477.82587, B=2143.4174, alpha=0.34731050, beta=0.36717243),
    # SODA's published parametric fit, as quoted by Open-Athena.
    "soda": Surface(E=3.169, A=215_886.0, B=4750.0, alpha=0.684, beta=0.439),
}
