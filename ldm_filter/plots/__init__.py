"""Pictures of results: a filtered signal with its band, gaps and forecast; a filtered video; how training went; methods side by side; reliability.

Every function returns a `matplotlib.figure.Figure` that belongs to nobody: it needs no display and no pyplot state, so it can be made anywhere.
Save it with ``figure.savefig("name.png")``; in a notebook, ``%matplotlib inline`` shows it. Colours are those of Okabe and Ito (2008), which
the colour-blind tell apart.
"""

from __future__ import annotations

from ldm_filter.plots.comparison import plot_comparison
from ldm_filter.plots.reliability import plot_reliability
from ldm_filter.plots.signal import plot_filter
from ldm_filter.plots.training import plot_training
from ldm_filter.plots.video import plot_video

__all__ = ["plot_comparison", "plot_filter", "plot_reliability", "plot_training", "plot_video"]
