"""The command line: ``ldm-filter fit | filter | smooth | forecast | stream`` on files and pipes."""

from __future__ import annotations

from ldm_filter.cli.program import main

__all__ = ["main"]
