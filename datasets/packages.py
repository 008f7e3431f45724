"""One clear error for data that ships inside a package that is not installed."""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = ["require"]


def require(module: str) -> ModuleType:
    """Import a module of the ``benchmarks`` extra.

    Args:
        module: dotted name, as ``seglearn.datasets``.

    Returns:
        The imported module.

    Raises:
        ModuleNotFoundError: the package is absent; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if (error.name or "").partition(".")[0] != package:
            raise  # the package is there, something it needs is not: its own message says more
        raise ModuleNotFoundError(
            f"this data set ships with the package {package}, which is not installed; run: pip install ldm-filter[benchmarks]", name=package
        ) from error
