"""One HTML file about a model on data, for a colleague: data, fit, filter, forecast, diagnostics, classical baselines, how to reproduce it."""

from __future__ import annotations

from ldm_filter.report.page import write_report

__all__ = ["write_report"]
