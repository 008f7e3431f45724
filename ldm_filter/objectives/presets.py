"""Latent model x entropy estimator x {LDM, MI} x {plane, sphere}: what goes together, and the named methods among it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm_filter.objectives.objective import ESTIMATORS, Objective

__all__ = ["ANNEALED", "LATENT_MODELS", "OBJECTIVES", "PRESETS", "Composition", "compose"]

LATENT_MODELS = ("dynamics", "recurrent", "pair", "pair-predictor", "pair-regression", "sources")


@dataclass(frozen=True)
class Composition:
    """A latent model beside the objective that it is trained with.

    Attributes:
        latent_model: ``"dynamics"``: the filter's own state-space model. The others predict the latents only while the encoder is
            trained: ``"recurrent"``, a GRU and a network; ``"pair"``, the next latent is like this one; ``"pair-predictor"``, it is a network of
            this one; ``"pair-regression"``, the least squares of the batch; ``"sources"``, independent sources.
        objective: estimator, MI or LDM, space.
        settings: of the latent model's module: ``variance`` or ``concentration`` (None: learned), ``family``, ``temporal``.

    Raises:
        ValueError: a combination without meaning; the message gives the reason.
    """

    latent_model: str = "dynamics"
    objective: Objective = field(default_factory=Objective)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.latent_model not in LATENT_MODELS:
            raise ValueError(f"latent_model is {self.latent_model!r}, expected one of auto, {', '.join(LATENT_MODELS)}")
        reason = _nonsense(self.latent_model, self.objective)
        if reason is not None:
            raise ValueError(f"latent_model {self.latent_model!r} and objective {self.objective.entropy!r} do not go together: {reason}")


def _nonsense(latent_model: str, objective: Objective) -> str | None:
    """Why a combination has no meaning, or None."""
    pair = latent_model in ("pair", "pair-predictor", "pair-regression")
    if objective.space == "sphere" and latent_model in ("dynamics", "pair-regression", "sources"):
        return "its predictions are densities on the plane and leave the sphere; use space='plane'"
    if objective.entropy == "stop-gradient" and latent_model == "pair":
        return "without a predictor every encoder that gives a constant is optimal; use latent_model='pair-predictor'"
    if objective.entropy == "stop-gradient" and latent_model == "sources":
        return "it predicts nothing from the past that could teach the encoder; use 'jacobian' or 'log-det'"
    if objective.entropy == "conditional-log-det" and latent_model != "dynamics":
        return "it takes no notice of R, on which this entropy is conditional; use 'log-det'"
    if objective.prior == "flat" and not pair:
        return "it has a belief of its own about the first latent; use prior='empirical'"
    return None


def _sphere(entropy: str, **choices: Any) -> Objective:
    return Objective(entropy, space="sphere", gauge_weight=0.0, **choices)


PRESETS: dict[str, Composition] = {
    "kalman": Composition(),
    "ica": Composition("sources", Objective("jacobian", gauge_weight=0.0), {"family": "logistic", "temporal": False}),
    "temporal-ica": Composition("sources", Objective("jacobian", gauge_weight=0.0), {"family": "gaussian", "temporal": True}),
    "vicreg": Composition("pair", Objective("log-det", gauge_weight=0.0, prior="flat", pooled=False), {"variance": 0.02}),
    "vicreg-hinge": Composition("pair", Objective("variance-covariance", gauge_weight=0.0, prior="flat", pooled=False), {"variance": 0.02}),
    "simclr": Composition("pair", _sphere("kde", prior="flat", options={"concentration": 10.0}), {"concentration": 20.0}),
    "cpc": Composition("recurrent", _sphere("info-nce", options={"concentration": 10.0}), {"concentration": 10.0}),
    "byol": Composition("pair-predictor", _sphere("stop-gradient", mutual_information=False), {"concentration": 2.0}),
    "simsiam": Composition("pair-predictor", _sphere("stop-gradient", mutual_information=False), {"concentration": 1.0}),
    "jepa": Composition("pair-predictor", Objective("stop-gradient", mutual_information=False), {"variance": 0.5}),
}
"""Table 1 of arXiv 2605.03517 by name, each equal to the published loss up to constants, the two views being neighbours in time.

``kalman``: the filter's own likelihood and the log-determinant, F_MI. ``ica``: maximum likelihood (infomax) with logistic sources; ``temporal-ica``:
the same with Gaussian sources of different time constants. ``vicreg``: squared distance and the log-determinant of each view (Table 1);
``vicreg-hinge``: with the published hinge and covariance penalty, which are its second order. ``simclr``: NT-Xent at temperature 0.1, both
directions of a pair. ``cpc``: InfoNCE from a recurrent context. ``byol`` and ``simsiam``: cosine distance to a detached target (BYOL's target comes
from the present weights, not from their moving average). ``jepa``: squared distance to a detached target; as it has no scale, training adds
the gauge.
"""

ANNEALED = {"annealed-knn": "knn", "annealed-kde": "kde"}
"""Estimators that training comes to by degrees, from log-det: see `Objective.at`."""

OBJECTIVES = ("auto", *dict.fromkeys((*ESTIMATORS["plane"], *ESTIMATORS["sphere"])), *ANNEALED, *PRESETS)
"""What ``LDMFilter(objective=...)`` takes: estimators, for the latent model and space of one's choice, and presets, which choose all."""


def compose(
    objective: str,
    latent_model: str = "auto",
    space: str = "plane",
    mutual_information: bool = True,
    noise: str = "constant",
    square: bool = False,
) -> Composition:
    """What the arguments of LDMFilter mean together.

    ``"auto"`` is the estimator that cannot be exploited at the least cost: with as many latents as channels (``square``) and a constant R the
    change of variables, which is exact, so that heavy-tailed data gain nothing by rare events far out, as they do with log-det; else log-det,
    in its conditional form where R depends on the observation; the kernel density on the sphere.

    Raises:
        ValueError: an unknown name; arguments that contradict each other or a preset; ``"jacobian"`` without as many latents as entries of an
            observation; a combination without meaning.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective is {objective!r}, expected one of {', '.join(OBJECTIVES)}")
    if objective in PRESETS:
        chosen = _preset(objective, latent_model, space, mutual_information)
    else:
        model = "dynamics" if latent_model == "auto" else latent_model
        chosen = _free(objective, model, space, mutual_information, noise, square)
    if chosen.latent_model != "dynamics" and noise != "constant":
        raise ValueError(f"noise is {noise!r}, but latent_model {chosen.latent_model!r} takes no notice of R; use noise='constant'")
    if chosen.objective.needs_volume and not square:
        raise ValueError(
            f"objective is {objective!r}, which takes the change of volume and needs latent_dim equal to the number of entries of one observation; "
            'use "log-det"'
        )
    return chosen


def _preset(name: str, latent_model: str, space: str, mutual_information: bool) -> Composition:
    chosen = PRESETS[name]
    if latent_model not in ("auto", chosen.latent_model):
        raise ValueError(f"objective {name!r} has latent_model {chosen.latent_model!r}, not {latent_model!r}; leave latent_model out")
    if space not in ("plane", chosen.objective.space):
        raise ValueError(f"objective {name!r} lives on the {chosen.objective.space}, not the {space}; leave space out")
    if not mutual_information and chosen.objective.mutual_information:
        raise ValueError(f"objective {name!r} is a form of F_MI; leave mutual_information out, or name an estimator and a latent_model instead")
    return chosen


def _free(entropy: str, latent_model: str, space: str, mutual_information: bool, noise: str, square: bool) -> Composition:
    if entropy == "auto":
        entropy = _default(latent_model, space, noise, square)
    # Sources of scale 1, and latents on the sphere, have their scale already.
    weight, start = 0.0 if latent_model == "sources" else 1.0, "log-det" if entropy in ANNEALED else None
    objective = Objective(ANNEALED.get(entropy, entropy), mutual_information, weight, space, start=start)
    settings = {"family": "logistic", "temporal": True} if latent_model == "sources" else {}
    return Composition(latent_model, objective, settings)


def _default(latent_model: str, space: str, noise: str, square: bool) -> str:
    if space == "sphere":
        return "kde"
    if noise == "input" and latent_model == "dynamics":
        return "conditional-log-det"
    return "jacobian" if square else "log-det"
