"""Are the true latents recovered, and up to what: an affine map, a similarity, order and sign? Is the encoder injective at all?

Samples are ``(..., d)``; every axis before the last counts samples. The estimate comes first, the truth second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from torch import Tensor

from ldm_filter.metrics.accuracy import AffineMap, affine_fit, r2
from ldm_filter.metrics.arrays import Array, as_array, check_finite

__all__ = [
    "AffineR2",
    "Injectivity",
    "affine_r2_both_ways",
    "dynamics_r2",
    "eigenvalue_error",
    "local_injectivity",
    "mcc",
    "neighbour_ratio",
    "procrustes_disparity",
]


class AffineR2(NamedTuple):
    """R2 of affine maps between learned and true latents, on test data.

    Attributes:
        truth_from_learned: 1 where the truth is an affine function of what was learned (theorem 1 of arXiv 2605.03517).
        learned_from_truth: 1 where nothing but an affine function of the truth was learned; lower with superfluous latents.
    """

    truth_from_learned: float
    learned_from_truth: float


def affine_r2_both_ways(train_learned: Any, train_truth: Any, test_learned: Any, test_truth: Any) -> AffineR2:
    """`ldm_filter.metrics.affine_r2` of the truth from the learned latents, and the other way round.

    Args:
        train_learned: ``(..., n)``. train_truth: ``(..., d)``; both maps are fitted on these by least squares.
        test_learned, test_truth: other samples; the figures are theirs.

    Raises:
        ValueError: shapes do not fit, or a NaN.

    >>> rng = np.random.default_rng(0)
    >>> truth = rng.standard_normal((100, 2))
    >>> learned = np.concatenate([truth + 1, rng.standard_normal((100, 1))], axis=-1)  # the third knows nothing
    >>> both = affine_r2_both_ways(learned, truth, learned, truth)
    >>> both.truth_from_learned > 0.999 and 0.6 < both.learned_from_truth < 0.7
    True
    """
    forth, back = affine_fit(train_learned, train_truth), affine_fit(train_truth, train_learned)
    return AffineR2(float(r2(forth.apply(test_learned), test_truth)), float(r2(back.apply(test_truth), test_learned)))


def mcc(estimate: Any, truth: Any) -> float:
    """Mean correlation coefficient: each true latent matched with one estimated latent, mean of |Pearson correlation|.

        max over matchings of 1/d sum_i |corr(estimate_match(i), truth_i)|

    1 where latents are recovered up to order, sign and scale, which theorem 1 does *not* promise: align by `affine_fit` first to see
    what remains, or use it for independent components.

    Args:
        estimate: ``(..., n)``, n at least d. truth: ``(..., d)``.

    Raises:
        ValueError: shapes do not fit, a NaN, fewer estimated than true latents, or one that is constant.

    >>> mcc([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0]], [[1.0, 0.0], [0.0, -1.0], [5.0, -2.0]]) > 0.999
    True
    """
    x, y = _samples(estimate, truth)
    if x.shape[1] < y.shape[1]:
        raise ValueError(f"estimate has {x.shape[1]} latents and truth has {y.shape[1]}; at least as many are needed, to match each true one")
    normal = []
    for name, value in (("estimate", x), ("truth", y)):
        centred = value - value.mean(0)
        norm = np.sqrt(np.square(centred).sum(0))
        if (norm <= 1e-12 * np.sqrt(len(value)) * np.abs(value).max(0)).any():
            raise ValueError(f"{name} is constant in latent {int(norm.argmin())}: a correlation is not defined")
        normal.append(centred / norm)
    correlation = np.abs(normal[0].T @ normal[1])
    return min(1.0, float(correlation[linear_sum_assignment(correlation, maximize=True)].mean()))


def procrustes_disparity(estimate: Any, truth: Any) -> float:
    """What is left after the best shift, rotation, reflection and scale, as a share of the truth's variance.

        1 - (sum of singular values of X' Y)^2,   X, Y centred and of unit Frobenius norm

    0 where shapes agree up to a similarity, 1 at worst. Where one side has fewer dimensions it is padded with zeros. Symmetric.

    Args:
        estimate: ``(..., n)``. truth: ``(..., d)``.

    Raises:
        ValueError: shapes do not fit, a NaN, or all samples of a side are equal.

    >>> procrustes_disparity([[0.0, 0.0], [0.0, 2.0], [4.0, 0.0]], [[1.0, 1.0], [2.0, 1.0], [1.0, 3.0]]) < 1e-12
    True
    """
    sides = []
    for name, value in zip(("estimate", "truth"), _samples(estimate, truth), strict=True):
        centred = value - value.mean(0)
        norm = np.linalg.norm(centred)
        if not norm > 0:
            raise ValueError(f"{name} has the same value in all samples: a shape is not defined")
        sides.append(centred / norm)
    return float(1.0 - min(1.0, np.linalg.svd(sides[0].T @ sides[1], compute_uv=False).sum()) ** 2)


def dynamics_r2(learned_step: Callable[[Array], Any], states: Any, true_next: Any, forth: AffineMap, back: AffineMap) -> float:
    """dynR2: the learned dynamics, carried over to the true latents, against the true ones.

        R2 of  L f_learned(L^-1 x)  for  f_true(x),     L: learned -> true, the affine alignment

    Args:
        learned_step: learned latents ``(N, n)`` to those one step later, without noise.
        states: true latents x, ``(..., d)``. true_next: f_true(x), ``(..., d)``.
        forth: L, from `affine_fit(learned, truth)`. back: L^-1, from `affine_fit(truth, learned)`.

    Raises:
        ValueError: shapes do not fit, or a NaN.

    Source:
        Laiz, Schmidt and Schneider, "Self-supervised contrastive learning performs non-linear system identification" (DynCL), 2025.
    """
    x, y = _samples(states, true_next, ("states", "true_next"))
    if x.shape != y.shape:
        raise ValueError(f"states have {x.shape[1]} dimensions and true_next has {y.shape[1]}; both are true latents")
    return float(r2(forth.apply(as_array("learned_step(...)", learned_step(back.apply(x)))), y))


def eigenvalue_error(estimate: Any, truth: Any) -> float:
    """Largest distance between matched eigenvalues of two transition matrices: an affine change of latents moves none of them.

        min over matchings of max_i |lambda_match(i)(estimate) - lambda_i(truth)|        (the matching of least summed distance)

    Args:
        estimate: ``(n, n)``, n at least d; n - d eigenvalues stay without a partner. truth: ``(d, d)``.

    Raises:
        ValueError: not square matrices of finite numbers, or fewer states than the truth has.

    >>> eigenvalue_error([[0.0, 1.0], [-1.0, 0.0]], [[0.0, -0.9], [0.9, 0.0]]).__round__(12)
    0.1
    """
    matrices = []
    for name, value in (("estimate", estimate), ("truth", truth)):
        matrix = as_array(name, value)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
            raise ValueError(f"{name} has shape {matrix.shape}, expected a square matrix (n, n)")
        check_finite(name, matrix)
        matrices.append(matrix)
    if len(matrices[0]) < len(matrices[1]):
        raise ValueError(f"estimate has {len(matrices[0])} states and truth has {len(matrices[1])}; at least as many are needed to match all")
    distance = np.abs(np.linalg.eigvals(matrices[0])[:, None] - np.linalg.eigvals(matrices[1]))
    return float(distance[linear_sum_assignment(distance)].max())


class Injectivity(NamedTuple):
    """Singular values of a map's Jacobian at each of the points, ``(N,)``: ``smallest``, and ``condition`` = largest / smallest."""

    smallest: Array
    condition: Array


def local_injectivity(function: Callable[[Tensor], Tensor], points: Tensor, directions: Tensor | None = None) -> Injectivity:
    """Smallest singular value of the Jacobian at points: above 0 where the map is injective nearby.

    Of D inputs and M outputs the min(D, M)-th singular value counts: does the encoder hold on to every direction that it could? With
    ``directions`` the map is looked at along these alone; the Jacobian of a known generator makes it the encoder on the data's manifold.

    Args:
        function: batched map ``(N, D)`` -> ``(N, M)``, each row on its own (a network in evaluation mode).
        points: ``(N, D)``.
        directions: ``(N, D, d)``; default the identity.

    Raises:
        ValueError: arguments of another shape, or a Jacobian that is not finite.

    >>> matrix = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    >>> local_injectivity(lambda x: x @ matrix.mT, torch.zeros(4, 2)).smallest.tolist()
    [0.5, 0.5, 0.5, 0.5]
    """
    if points.ndim != 2:
        raise ValueError(f"points have shape {tuple(points.shape)}, expected (N, D); flatten series and time first")
    count, size = points.shape
    if directions is None:
        directions = torch.eye(size, dtype=points.dtype, device=points.device).expand(count, size, size)
    if directions.ndim != 3 or directions.shape[:2] != points.shape:
        raise ValueError(f"directions have shape {tuple(directions.shape)}, expected (N, D, d) with (N, D) = {tuple(points.shape)}")
    each = directions.shape[-1]
    with torch.no_grad():  # all directions at once: every point repeated with each of its tangents
        columns = torch.func.jvp(function, (points.repeat(each, 1),), (directions.movedim(-1, 0).flatten(0, 1).contiguous(),))[1]
    jacobian = columns.unflatten(0, (each, count)).movedim(0, -1).double().cpu().numpy()
    check_finite("the Jacobian of function", jacobian)
    values = np.linalg.svd(jacobian, compute_uv=False)
    smallest = values[:, -1]
    condition = np.divide(values[:, 0], smallest, out=np.full_like(smallest, np.inf), where=smallest > 0)
    return Injectivity(smallest, condition)


def neighbour_ratio(embedding: Any, truth: Any, quantile: float = 0.95) -> float:
    """Does the embedding put together what is far apart? How much further the embedding's nearest neighbour is than the true one.

        ratio_i = |x_i - x_nearest to i in the embedding| / |x_i - x_nearest to i in truth|,     its quantile over i

    At least 1, and 1 where neighbours are kept. An encoder that folds the manifold, which its Jacobian does not show, gives a large
    number; so does noise that is wider than the distance of neighbours.

    Args:
        embedding: ``(..., n)``. truth: x, ``(..., d)``.
        quantile: of the ratios, in [0, 1]: 0.95 finds folds of a twentieth of the data.

    Raises:
        ValueError: shapes do not fit, a NaN, fewer than three samples, samples of equal truth, or a quantile out of range.

    >>> truth = np.arange(10.0)[:, None]
    >>> neighbour_ratio(truth**3, truth), neighbour_ratio(np.abs(truth - 4.5), truth)
    (1.0, 9.0)
    """
    x, y = _samples(embedding, truth, ("embedding", "truth"))
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile is {quantile}, expected a number from 0 to 1")
    if len(x) < 3:
        raise ValueError(f"embedding has {len(x)} samples, expected at least 3")
    nearest = np.linalg.norm(y - y[_nearest(y)], axis=-1)
    if not (nearest > 0).all():
        raise ValueError(f"truth is equal in samples {int(nearest.argmin())} and another: drop repeated samples")
    found = np.linalg.norm(y - y[_nearest(x)], axis=-1)
    return float(np.quantile(found / nearest, quantile, method="higher"))


def _nearest(points: Array) -> Array:
    """Index of the nearest other sample of each."""
    places = cKDTree(points).query(points, k=2)[1]
    own = places[:, 0] == np.arange(len(points))
    return np.where(own, places[:, 1], places[:, 0])


def _samples(estimate: Any, truth: Any, names: tuple[str, str] = ("estimate", "truth")) -> tuple[Array, Array]:
    """Finite samples ``(N, n)`` and ``(N, d)`` of two arrays with the same leading axes."""
    x, y = as_array(names[0], estimate), as_array(names[1], truth)
    if x.ndim < 2 or y.ndim < 2 or x.shape[:-1] != y.shape[:-1] or not x.size or not y.size:
        raise ValueError(f"{names[0]} has shape {x.shape} and {names[1]} {y.shape}; expected (..., n) and (..., d) with the same leading axes")
    for name, value in zip(names, (x, y), strict=True):
        check_finite(name, value)
    return x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
