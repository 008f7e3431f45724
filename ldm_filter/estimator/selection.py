"""How many states? Models of growing size, compared by the likelihood of data that they were not fitted on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ldm_filter.estimator.inference import predictive_density, run_filter

if TYPE_CHECKING:
    from ldm_filter.estimator.ldm import LDMFilter

__all__ = ["CANDIDATES", "Size", "compare_sizes", "smallest_good"]

CANDIDATES = (2, 4, 6, 8, 12, 16, 24)
# Sizes without gain on end after which no larger one is tried.
PATIENCE = 2
# Blocks of neighbouring steps whose means are taken for independent.
BLOCKS = 20
EPOCHS = 10
# Nats per entry that two more states must be worth: short trainings differ by about half of it.
WORTH = 0.02


class Size(NamedTuple):
    """A state dimension that was tried.

    Attributes:
        state_dim: n.
        score: mean log-density per held-out entry, one step ahead, in nats (of the data's units).
        behind: how far it is behind the best, and error: the standard error of that difference (0 for the best).
    """

    state_dim: int
    score: float
    behind: float
    error: float


def compare_sizes(estimator: LDMFilter, data: Any, candidates: Iterable[int] = CANDIDATES, **fit: Any) -> list[Size]:
    """Fit a model of every size for a few epochs on the same split, smallest first, until growing no longer helps.

    Args:
        estimator: all other arguments are taken from it; it is not changed.
        data: as for its ``fit``. fit: the other arguments of ``fit``, all of them but progress and log_path; something must be held out.

    Raises:
        ValueError: nothing is held out.
    """
    densities: dict[int, np.ndarray] = {}
    best, idle = -np.inf, 0
    epochs = fit.get("epochs")
    fit = fit | {"epochs": EPOCHS if epochs is None else max(2, epochs // 3), "progress": False, "log_path": None}
    for size in sorted(set(candidates)):
        if estimator.latent_dim is not None and size < estimator.latent_dim:
            continue
        trial = type(estimator)(**estimator.get_params() | {"state_dim": size})
        plan = trial._train(data, **fit)
        if plan.validation is None:
            raise ValueError(
                "state_dim 'auto' compares sizes on held-out data, and nothing is held out; give validation, or series of at least 20 steps"
            )
        run = run_filter(trial.model_, plan.validation.sequences, trial.labels_)
        density = predictive_density(run, trial.model_, trial.readout_).flatten(2).nanmean(-1)
        densities[size] = density.flatten().cpu().numpy()
        mean = float(np.nanmean(densities[size]))
        idle = 0 if mean > best + 1e-3 else idle + 1
        best = max(best, mean)
        if idle >= PATIENCE:
            break
    return _against_the_best(densities)


def smallest_good(sizes: list[Size]) -> int:
    """The smallest state dimension that is within one standard error, or 0.02 nats per entry, of the best.

    >>> smallest_good([Size(2, -1.0, 0.5, 0.1), Size(4, -0.53, 0.03, 0.04), Size(8, -0.5, 0.0, 0.0)])
    4
    """
    return min(size.state_dim for size in sizes if size.behind <= max(size.error, WORTH))


def _against_the_best(densities: dict[int, np.ndarray]) -> list[Size]:
    """Differences block by block: the steps are the same ones, and neighbours are alike."""
    means = {size: float(np.nanmean(density)) for size, density in densities.items()}
    best = densities[max(means, key=lambda size: means[size])]
    sizes = []
    for size, density in densities.items():
        difference = (best - density)[np.isfinite(best)]
        blocks = np.array([block.mean() for block in np.array_split(difference, min(BLOCKS, len(difference)))])
        error = float(blocks.std(ddof=1) / len(blocks) ** 0.5) if len(blocks) > 1 else 0.0
        sizes.append(Size(size, means[size], float(difference.mean()), error))
    return sizes
