"""What users call: :class:`~ldm_filter.estimator.ldm.LDMFilter`, and the steps it is made of."""

from __future__ import annotations

from ldm_filter.estimator.ldm import LDMFilter

__all__ = ["LDMFilter"]
