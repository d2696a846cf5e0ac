"""The optimum of L = E + A / N^alpha + B / D^beta at a budget and a cost of a token, and its growth
with compute.
"""

from __future__ import annotations

import numpy as np

from isoflop.fitting.estimators.newton import Observations
from isoflop.fitting.estimators.token_cost import LN_SIX, SIX_ND_COST, TokenCost
from isoflop.frames import Floats

_GRID_SIZES = 129
_BISECTIONS = 45
_BLOCK_PROBLEMS = 4096
_MIN_SLOPE = 1e-3


def optimum(
    points: Observations, theta: Floats, flops: Floats | float, cost: TokenCost = SIX_ND_COST
) -> tuple[Floats, Floats]:
    """Return ln N*, ln D* and ln L* at C FLOPs and their gradients by theta.

    With C = 6ND, N* = G (C/6)^a with G = (alpha A / (beta B))^(1/(alpha+beta)) and a = beta /
    (alpha + beta), Hoffmann et al. 2022, eq. 4. With another cost it is the least loss over all
    sizes. The gradients follow from the condition of a minimum, see `optimum_gradients`; that of L*
    is that of L at fixed N and D, since L is stationary there.

    Args:
        points: source of the mean ln N and ln D.
        theta: see `newton`, (..., 5).
        flops: C, training FLOPs; it is broadcast against theta without its last axis.
        cost: of a token.

    Returns:
        Values, (..., 3), and gradients, (..., 3, 5).
    """
    theta = np.asarray(theta, dtype=np.float64)
    shape = np.broadcast_shapes(theta.shape[:-1], np.shape(flops))
    ln_flops = np.broadcast_to(np.log(flops), shape)
    if cost.is_constant:
        size = _closed_form(points, theta, ln_flops - LN_SIX - cost.ln_ratio[0])
    else:
        many = np.broadcast_to(theta, (*shape, 5)).reshape(-1, 5)
        size = _search(points, many, ln_flops.reshape(-1), cost).reshape(shape)
    data = cost.ln_tokens(size, ln_flops)
    slope, bend = cost.slope(size), cost.bend(size)
    return optimum_gradients(points, theta, size, data, slope, bend)


def optimum_gradients(
    points: Observations,
    theta: Floats,
    size: Floats | float,
    data: Floats | float,
    slope: Floats | float,
    bend: Floats | float,
) -> tuple[Floats, Floats]:
    """Return ln N*, ln D*, ln L* of known optima, (..., 3), and their gradients, (..., 3, 5).

    At the optimum ln alpha + ln(A/N^alpha) = ln beta + ln(B/D^beta) + ln s with
    s = d ln(C/D) / d ln N. The derivatives of N* and D* by theta follow from this equation; those
    of the loss are at fixed N and D.

    Args:
        points: source of the mean ln N and ln D.
        theta: (..., 5).
        size, data: ln N* and ln D*, (...).
        slope: s, (...): 1 for C = 6ND.
        bend: ds / d ln N, (...).
    """
    e, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
    x, y = size - points.x_mean, data - points.y_mean
    p, q, floor = np.exp(a - alpha * x), np.exp(b - beta * y), np.exp(e)
    loss = floor + p + q
    slope = np.maximum(slope, _MIN_SLOPE)
    # Positive at a minimum; an edge, where the slope jumps, may have any value.
    total = np.maximum(alpha + beta * slope + bend / slope, _MIN_SLOPE * (alpha + beta))
    zero, unit = np.zeros_like(loss), np.ones_like(loss)
    columns = [zero, unit, -unit, 1.0 / alpha - x, y - 1.0 / beta]
    size_gradient = np.stack(np.broadcast_arrays(*columns), axis=-1) / total[..., None]
    loss_columns = np.broadcast_arrays(floor, p, q, -x * p, -y * q)
    loss_gradient = np.stack(loss_columns, axis=-1) / loss[..., None]
    values = np.stack(np.broadcast_arrays(size, data, np.log(loss)), axis=-1)
    data_gradient = -np.asarray(slope)[..., None] * size_gradient
    return values, np.stack([size_gradient, data_gradient, loss_gradient], axis=-2)


def growth_exponents(
    points: Observations, theta: Floats, cost: TokenCost = SIX_ND_COST
) -> tuple[Floats, Floats]:
    """Return a and b of N* ~ C^a and D* ~ C^b, (..., 2), and their gradients by theta, (..., 2, 5).

    With C a constant times ND, a = beta / (alpha + beta) and b = 1 - a. Otherwise the optima are no
    power laws, and a and b are the slopes of the least-squares lines through ln N* and ln D* of the
    budgets.
    """
    theta = np.asarray(theta, dtype=np.float64)
    if cost.is_constant or len(cost.ln_flops) < 2:
        alpha, beta = theta[..., 3], theta[..., 4]
        a = beta / (alpha + beta)
        zero = np.zeros_like(a)
        gradient = np.stack([zero, zero, zero, -beta, alpha], axis=-1)
        gradient = gradient / ((alpha + beta) ** 2)[..., None]
        return np.stack([a, 1.0 - a], axis=-1), np.stack([gradient, -gradient], axis=-2)
    centred = cost.ln_flops - cost.ln_flops.mean()
    weights = centred / (centred @ centred)
    values, gradients = optimum(points, theta[..., None, :], np.exp(cost.ln_flops), cost)
    pair = values[..., :2] - values[..., :1, :2]  # exactly 0 for an optimum that does not move
    return (
        np.einsum("k,...kq->...q", weights, pair),
        np.einsum("k,...kqi->...qi", weights, gradients[..., :2, :]),
    )


def _closed_form(points: Observations, theta: Floats, ln_product: Floats) -> Floats:
    """Return ln N* at a product of N and D."""
    _, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
    a_far, b_far = a + alpha * points.x_mean, b + beta * points.y_mean
    return (np.log(alpha) + a_far - np.log(beta) - b_far + beta * ln_product) / (alpha + beta)


def _search(points: Observations, theta: Floats, ln_flops: Floats, cost: TokenCost) -> Floats:
    """Return ln N* of J problems, (J,), from theta (J, 5) and ln C (J,), with any cost.

    The candidates are the least loss among the sizes with a known cost, by bisection of its slope,
    and the closed forms beyond them, where the cost is held.
    """
    sizes = np.empty(len(theta))
    for first in range(0, len(theta), _BLOCK_PROBLEMS):
        block = slice(first, first + _BLOCK_PROBLEMS)
        sizes[block] = _search_block(points, theta[block], ln_flops[block], cost)
    return sizes


def _search_block(points: Observations, theta: Floats, ln_flops: Floats, cost: TokenCost) -> Floats:
    first, last = cost.ln_params[0], cost.ln_params[-1]
    grid = np.linspace(first, last, _GRID_SIZES)
    least = np.argmin(_excess(points, theta[:, None], grid, ln_flops[:, None], cost), axis=1)
    low, high = grid[np.maximum(least - 1, 0)], grid[np.minimum(least + 1, _GRID_SIZES - 1)]
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        falls = _loss_falls(points, theta, middle, ln_flops, cost)
        low, high = np.where(falls, middle, low), np.where(falls, high, middle)
    inside = 0.5 * (low + high)
    edge = np.where(inside - first < last - inside, first, last)
    inside = np.where(np.abs(inside - edge) < 1e-9, edge, inside)
    candidates = [inside]
    for edge, sign in ((first, -1.0), (last, 1.0)):
        product = ln_flops - LN_SIX - cost.ln_cost(edge, ln_flops)
        outside = _closed_form(points, theta, product)
        candidates.append(np.where(sign * (outside - edge) > 0.0, outside, inside))
    sizes = np.stack(candidates, axis=1)
    best = np.argmin(_excess(points, theta[:, None], sizes, ln_flops[:, None], cost), axis=1)
    return sizes[np.arange(len(sizes)), best]


def _excess(
    points: Observations, theta: Floats, size: Floats, ln_flops: Floats, cost: TokenCost
) -> Floats:
    """Return L - E at ln N and ln C."""
    _, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
    data = cost.ln_tokens(size, ln_flops)
    return np.exp(a - alpha * (size - points.x_mean)) + np.exp(b - beta * (data - points.y_mean))


def _loss_falls(
    points: Observations, theta: Floats, size: Floats, ln_flops: Floats, cost: TokenCost
) -> np.ndarray:
    """Return whether the loss at fixed C falls with size."""
    _, a, b, alpha, beta = np.moveaxis(theta, -1, 0)
    data = cost.ln_tokens(size, ln_flops)
    by_size = alpha * np.exp(a - alpha * (size - points.x_mean))
    by_data = beta * np.exp(b - beta * (data - points.y_mean)) * cost.slope(size)
    return by_size > by_data
