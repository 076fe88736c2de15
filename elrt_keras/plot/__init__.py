"""Plots of low-rank models, their plans and their results, with matplotlib.

Each function returns a `matplotlib.figure.Figure` that is independent of pyplot and needs no display. A notebook shows
it after `%matplotlib inline`. `path=` also saves it atomically, in the type of its suffix (PNG, SVG, PDF).
"""

from elrt_keras.plot.drawings import orthogonality, rank_plan, spectra, tradeoff

__all__ = ["orthogonality", "rank_plan", "spectra", "tradeoff"]
