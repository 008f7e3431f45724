"""``LDMFilter.compare``: the door to `ldm_filter.comparison`, which stands above the baselines that the estimator does not know."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Several
from importlib import import_module
from typing import Any

__all__ = ["Comparing"]


class Comparing:
    """What puts a fitted model beside classical methods."""

    def compare(
        self,
        data: Any,
        train: Any,
        baselines: Several[Any] | Mapping[str, Any] | str = "auto",
        *,
        targets: Any = None,
        train_targets: Any = None,
        horizon: int = 12,
        gap: int = 8,
        season: int | None = None,
        readout: str = "linear",
        inputs: Any = None,
        train_inputs: Any = None,
        times: Any = None,
        train_times: Any = None,
    ) -> Any:
        """How good is this model beside classical filters and rules of thumb? The same data, splits, questions and read-out for all.

        Every baseline is fitted on ``train``, the data that this model was fitted on; then all answer three questions about ``data``, which none
        has seen: each step given those before it, gaps given both of their sides, and what comes after an origin.

        Args:
            data: to be judged on; as for ``filter``. train: what the model was fitted on; as for ``fit``.
            baselines: ``"auto"``, names (``"hold-last"``, ``"linear-interpolation"``, ``"seasonal-naive"``, ``"cv-kf"``, ``"ca-kf"``, ``"var6"`` and
                other orders, ``"pca-em-kf"``, ``"pca-em-kf-adaptive"``, ``"uc"``, ``"dynamic-factor"``), objects of `ldm_filter.baselines`, or a
                mapping of names to objects (such as ``{"ekf": EKF(equations)}``).
            targets, train_targets: physical quantities beside data and train, ``(time, target)`` per series, NaN where unknown. A read-out of
                the kind ``readout`` (``"linear"`` or ``"mlp"``) is fitted from every method's filtered state on train, and judged on data.
            horizon: steps ahead of the forecasts. gap: steps of the gaps that are cut into the data, one after every five of its lengths.
            season: steps of a season, for the methods that know one.
            inputs, times, train_inputs, train_times: as for ``filter``; inputs are known to this model alone.

        Returns:
            `ldm_filter.comparison.Comparison`: ``table`` (a DataFrame, a row per method), ``plot()``, and it prints itself.

        Raises:
            ValueError: not fitted yet, an unknown name, series too short for the gaps or the horizon, targets for one part only.
        """
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        # The one arrow that points up, taken when the method is called: see tests/test_architecture.py.
        return import_module("ldm_filter.comparison").compare(self, **arguments)
