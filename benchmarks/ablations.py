"""Ablations: what each part of the learned filter is good for. The questions, the variants that answer them, and the sentence that sums up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["ABLATIONS", "Ablation", "Variant", "sentence"]


class Variant(NamedTuple):
    """One model: what differs from the task's settings.

    Attributes:
        words: in the table and the sentence.
        changes: arguments of LDMFilter.
        judged: ``"filtered"``, the state, or ``"latent"``, the encoder's output of each frame on its own.
    """

    words: str
    changes: Mapping[str, Any]
    judged: str = "filtered"


class Ablation(NamedTuple):
    """A question and the models that answer it, by name; the first is the one that the others are compared with."""

    question: str
    variants: Mapping[str, Variant]


def _sizes(*sizes: int) -> dict[str, Variant]:
    return {f"states-{n}": Variant(f"{n} states", {"state_dim": n, "latent_dim": min(n, 5)}) for n in sizes}


# By task and condition. Names of variants are the methods of the results.
ABLATIONS: dict[tuple[str, str], Ablation] = {
    ("figure8", "ablation-filter"): Ablation(
        "What does the filter add to the encoder?",
        {"filtered": Variant("encoder and filter", {}), "encoder-alone": Variant("encoder alone, each frame by itself", {}, "latent")},
    ),
    ("figure8", "ablation-transition-cov"): Ablation(
        "Does the process noise need a full covariance?",
        {"full": Variant("full Q", {}), "diagonal": Variant("diagonal Q", {"transition_cov": "diagonal"})},
    ),
    ("figure8", "ablation-objective"): Ablation(
        "How much does the entropy estimator matter where the noise is constant?",
        {
            "log-det": Variant("log-det, F_MI", {"objective": "log-det"}),
            "log-det-ldm": Variant("log-det, F_LDM", {"objective": "log-det", "mutual_information": False}),
            "scale-mixture": Variant("scale mixture", {"objective": "scale-mixture"}),
            "knn": Variant("kNN", {"objective": "knn"}),
            "stop-gradient": Variant("stop-gradient", {"objective": "stop-gradient"}),
        },
    ),
    ("figure8", "ablation-state-dim"): Ablation(
        "How large must the state be? The motion holds two frequencies, which take four states.", _sizes(10, 2, 4, 6, 16)
    ),
    ("circular-input-noise", "ablation-noise"): Ablation(
        "What does a learned measurement covariance R(x) add where the noise varies from frame to frame?",
        {
            "input": Variant("learned R(x)", {"noise": "input", "objective": "conditional-log-det"}),
            "constant": Variant("constant R", {"noise": "constant", "objective": "log-det"}),
        },
    ),
    ("circular-input-noise", "ablation-objective"): Ablation(
        "Must the entropy be conditional on what R(x) depends on?",
        {
            "conditional-log-det": Variant("conditional log-det", {"noise": "input", "objective": "conditional-log-det"}),
            "scale-mixture": Variant("scale mixture", {"noise": "input", "objective": "scale-mixture"}),
            "log-det": Variant("plain log-det", {"noise": "input", "objective": "log-det"}),
        },
    ),
}


def sentence(ablation: Ablation, figures: Mapping[str, Mapping[str, float]]) -> str:
    """What the means over seeds say: the first variant against the one that differs most from it, in R2, error and coverage.

    Args:
        figures: by variant, with ``r2``, ``mse`` and ``coverage95``; variants without results are left out.
    """
    first, *others = [name for name in ablation.variants if name in figures]
    if not others:
        return ""
    base = figures[first]
    other = max(others, key=lambda name: abs(figures[name]["r2"] - base["r2"]))
    found, factor = figures[other], figures[other]["mse"] / base["mse"]
    change = f"{factor:.2g} times the" if factor >= 1.05 else f"{1 / factor:.2g} times less" if factor <= 1 / 1.05 else "about the same"
    far = "" if len(others) == 1 else "Farthest from it: "
    start = f"{ablation.variants[other].words[0].upper()}{ablation.variants[other].words[1:]}" if not far else ablation.variants[other].words
    return (
        f"{far}{start}: R² {found['r2']:.4f} instead of {base['r2']:.4f} with {ablation.variants[first].words}, {change} mean squared error; "
        f"the 95 % ellipse holds {100 * found['coverage95']:.1f} % instead of {100 * base['coverage95']:.1f} %."
    )
