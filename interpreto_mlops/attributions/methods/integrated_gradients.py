"""Integrated Gradients: the gradient averaged on the straight path from a baseline to the text."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from interpreto_mlops.attributions.base import METHODS, Estimate, Game, Steps, as_integer
from interpreto_mlops.attributions.gradients import PathAttributor, used_baselines
from interpreto_mlops.attributions.paths import Path
from interpreto_mlops.attributions.results import Floats
from interpreto_mlops.attributions.sampling import as_number
from interpreto_mlops.errors import InputError, TextWarning, UnknownNameError

_NODES = (8, 16, 32, 64)
_RULES = ("gauss_legendre", "left", "middle", "right", "trapezoid")


def quadrature(rule: str, n_nodes: int) -> tuple[Floats, Floats]:
    """Return nodes and weights on [0, 1], shape (n_nodes,) each; the weights sum to 1.

    Raises:
        UnknownNameError: a rule that is none of gauss_legendre, left, middle, right, trapezoid.
        InputError: fewer nodes than the rule needs (2 for the trapezoid, else 1).
    """
    if rule not in _RULES:
        raise UnknownNameError("quadrature rule", rule, _RULES)
    least = 2 if rule == "trapezoid" else 1
    if n_nodes < least:
        raise InputError(f"the {rule} rule needs at least {least} nodes, not {n_nodes!r}")
    k = np.arange(n_nodes)
    if rule == "gauss_legendre":
        nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
        return (1 + nodes) / 2, weights / 2
    if rule == "trapezoid":
        weights = np.full(n_nodes, 1 / (n_nodes - 1))
        weights[[0, -1]] /= 2
        return k / (n_nodes - 1), weights
    shift = {"left": 0.0, "middle": 0.5, "right": 1.0}[rule]
    return (k + shift) / n_nodes, np.full(n_nodes, 1 / n_nodes)


@METHODS.register("integrated_gradients")
@dataclass(frozen=True, kw_only=True)
class IntegratedGradients(PathAttributor):
    """Signed and complete: the scores of a text sum to its score minus the baseline's.

    By default the number of Gauss–Legendre nodes grows from 8 to 64 for the targets whose completeness gap is above
    `tolerance`; `checks` reports the gap (of the sum over components, whatever the reduction), and a gap that stays is
    a warning.

    Source: Sundararajan et al. 2017 (arXiv 1703.01365), equation 1.

    Arguments:
        n_nodes: a fixed number of nodes, or None to adapt it to each text.
        rule: `gauss_legendre`, `left`, `middle`, `right` or `trapezoid`.
        tolerance: the gap that is accepted, relative to score minus baseline score.
    """

    name: ClassVar[str] = "integrated_gradients"

    n_nodes: int | None = None
    rule: str = "gauss_legendre"
    tolerance: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_nodes is not None:
            object.__setattr__(self, "n_nodes", as_integer("n_nodes", self.n_nodes, 1))
        quadrature(self.rule, _NODES[0] if self.n_nodes is None else self.n_nodes)
        if not 0 < as_number(self.tolerance) < float("inf"):
            raise InputError(f"the tolerance must be above 0 and finite, not {self.tolerance!r}")

    def estimate(self, game: Game) -> Steps:
        """Score every element, shape (targets, elements)."""
        baselines = self._baselines(game.replacement)
        schedule = _NODES if self.n_nodes is None else (self.n_nodes,)
        wanted: tuple[int, ...] | None = None
        for n_nodes in schedule:
            nodes, weights = quadrature(self.rule, n_nodes)
            paths = [Path(nodes, weights, baseline, targets=wanted) for baseline in baselines]
            found, start = yield from self._integrate(game, paths)
            if wanted is None:
                components, base = found, start
            else:
                components[list(wanted)], base[list(wanted)] = found, start
            total = game.full - base
            gap = np.abs(components.sum(axis=(1, 2)) - total)
            # More nodes only for the targets that need them.
            wanted = tuple(np.flatnonzero(gap > self.tolerance * np.abs(total)).tolist())
            if complete := not wanted:
                break
        checks = {"completeness_gap": float(gap.max()), "nodes": float(n_nodes), "complete": float(complete)}
        if self.n_nodes is None and not complete:
            text = f"text {game.encoding.index}"
            warnings.warn(f"{text}: completeness gap {checks['completeness_gap']:.3g}", TextWarning, stacklevel=2)
        return Estimate(
            self._scores(game, components), checks=checks, baseline_output=base, parameters=used_baselines(baselines)
        )
