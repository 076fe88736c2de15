"""Pictures of low-rank models, of their plans and of what they reach, by matplotlib.

Each function returns a `matplotlib.figure.Figure` that pyplot does not know and that needs no display; a notebook shows
it after `%matplotlib inline`. `path=` also saves it, in the kind of its suffix (PNG, SVG, PDF), all of it or nothing.
"""

from elrt_keras.plot.drawings import orthogonality, rank_plan, spectra, tradeoff

__all__ = ["orthogonality", "rank_plan", "spectra", "tradeoff"]
