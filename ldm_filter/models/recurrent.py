"""A recurrent network as latent model: p(z_t | z_<t) from everything before, nonlinear, without a posterior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_filter.models.predictors import PairPredictor, PredictiveDensity, RegressionPredictor, SourcePredictor, earlier
from ldm_filter.types import Gaussian, Prediction

__all__ = ["RecurrentPredictor", "build_predictor"]

CELLS = {"gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentPredictor(nn.Module):
    """g_t = cell(g_{t-1}, z_{t-1}),   P(z_t | z_<t) around head(g_t), with a spread that does not depend on the state.

    There is no latent state with a belief: g is a deterministic summary of the past. A missing latent enters as zeros with a flag, and
    the first step is predicted from nothing, so every observed step counts.

    Args:
        latent_dim: m.
        space, variance, concentration: of the density, see :class:`~ldm_filter.models.predictors.PredictiveDensity`.
        cell: ``"gru"`` or ``"lstm"``.
        hidden: width of the cell and of the head's layer.

    Raises:
        ValueError: an unknown cell, or what the density refuses.
    """

    def __init__(
        self,
        latent_dim: int,
        space: str = "plane",
        cell: str = "gru",
        variance: float | None = None,
        concentration: float | None = None,
        hidden: int = 32,
    ) -> None:
        super().__init__()
        if cell not in CELLS:
            raise ValueError(f"cell is {cell!r}, expected one of {', '.join(CELLS)}")
        self.density = PredictiveDensity(latent_dim, space, variance, concentration)
        self.cell = CELLS[cell](latent_dim + 1, hidden, batch_first=True)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, latent_dim))

    def forward(self, measurements: Gaussian, observed: Tensor) -> Prediction:
        before, seen = earlier(measurements, observed)
        return Prediction(self.density(self.head(self.summaries(before, seen))), observed)

    def summaries(self, before: Tensor, seen: Tensor, start: Tensor | None = None) -> Tensor:
        """g_t ``(B, T, k)`` after z_{t-1} ``(B, T, m)`` (0 where not ``seen``), from ``start`` ``(B, k)`` (of a GRU) or from nothing."""
        entering = torch.cat([before, seen.unsqueeze(-1).to(before.dtype)], dim=-1)
        return self.cell(entering, None if start is None else start.unsqueeze(0).contiguous())[0]


def build_predictor(latent_model: str, latent_dim: int, space: str, **settings: object) -> nn.Module:
    """The latent model by the name of :data:`~ldm_filter.objectives.presets.LATENT_MODELS`, other than ``"dynamics"``.

    Raises:
        ValueError: an unknown name, or settings that the model refuses.
    """
    if latent_model == "recurrent":
        return RecurrentPredictor(latent_dim, space, **settings)  # type: ignore[arg-type]
    if latent_model in ("pair", "pair-predictor"):
        return PairPredictor(latent_dim, space, learned=latent_model == "pair-predictor", **settings)  # type: ignore[arg-type]
    if latent_model == "pair-regression":
        return RegressionPredictor(latent_dim, **settings)  # type: ignore[arg-type]
    if latent_model == "sources":
        return SourcePredictor(latent_dim, **settings)  # type: ignore[arg-type]
    raise ValueError(f"latent_model is {latent_model!r}, expected 'recurrent', 'pair', 'pair-predictor', 'pair-regression' or 'sources'")
