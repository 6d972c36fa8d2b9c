"""What gradient methods have in common: reductions over the width, element scores, noise and paths."""

from __future__ import annotations

import math
import numbers
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from interpreto_mlops.attributions.aggregation import Aggregation
from interpreto_mlops.attributions.base import Attributor, Game, as_integer
from interpreto_mlops.attributions.baselines import Baseline, described, resolve_baselines
from interpreto_mlops.attributions.paths import Neighbourhood, Noise, Path
from interpreto_mlops.attributions.results import Floats
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.registry import Choice


class Reduction(Choice):
    """What is made of the components of one token."""

    SUM = "sum"
    L2 = "l2"
    L1 = "l1"
    ABSMEAN = "absmean"


def reduced(components: Floats, how: Reduction) -> Floats:
    """Reduce components, shape (..., width), to one number, shape (...)."""
    if how is Reduction.SUM:
        out: Floats = components.sum(axis=-1)
    elif how is Reduction.L2:
        out = np.sqrt((components**2).sum(axis=-1))
    else:
        size = np.abs(components)
        out = size.sum(axis=-1) if how is Reduction.L1 else size.mean(axis=-1)
    return out


@dataclass(frozen=True, kw_only=True)
class GradientAttributor(Attributor):
    """A method that scores tokens by gradients with respect to their embeddings.

    Arguments:
        reduction: from the components of a token to its score, once, at the very end: `sum` (signed), `l2`, `l1` or
            `absmean`.
        aggregation: from the tokens of an element to its score: `sum` (the default, for it keeps completeness), `mean`,
            `max`, `min`, `signed_max` (the largest absolute value, with its sign), `first` or `last`.
    """

    reduction: str = "sum"
    aggregation: str = "sum"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._reduction()
        Aggregation.parse(self.aggregation)

    def _reduction(self) -> Reduction:
        return Reduction.parse(self.reduction)

    def _scores(self, game: Game, components: Floats) -> Floats:
        """Turn components, shape (targets, tokens, width), into the scores of elements, shape (targets, elements)."""
        return game.aggregate(reduced(components, self._reduction()), Aggregation.parse(self.aggregation))


@dataclass(frozen=True, kw_only=True)
class NoisyAttributor(GradientAttributor):
    """A method on gradients at points around the text.

    Arguments:
        n_draws: how many points; 50, as the paper's figures are steady from there on.
        noise: the standard deviation of the Gaussian noise, as a share of the range of the text's embeddings; without
            noise (0) one draw says all, and one is made. Special tokens get none.
        input_x_gradient: whether to multiply by the unperturbed embeddings, of squares by their squares.
        seed: of the noise, together with the text.
    """

    n_draws: int = 50
    noise: float = 0.1
    input_x_gradient: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "n_draws", as_integer("n_draws", self.n_draws, 1))
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0))
        check_noise(self.noise)
        if not isinstance(self.input_x_gradient, bool):
            raise InputError(f"input_x_gradient must be True or False, not {self.input_x_gradient!r}")

    def _around(self, game: Game, powers: tuple[int, ...] = (1,), variance: bool = False) -> Neighbourhood:
        """Return the points around the text: the same for every method with the same seed."""
        draws = self.n_draws if self.noise else 1
        noise = Noise.seeded(self.noise, draws, game.generator(self.seed))
        return Neighbourhood(draws, noise, powers, variance)


@dataclass(frozen=True, kw_only=True)
class PathAttributor(GradientAttributor):
    """A method on gradients along paths from a baseline to the text.

    Arguments:
        baseline: `replacement` (embeddings of what stands for an absent element; `zero` where that is `remove`), `pad`,
            `zero`, `mean` (of all embeddings), an array or tensor of shape (width,) or (tokens, width), or a list of
            these, over which the result is averaged. Special tokens keep their embeddings.
    """

    baseline: Any = "replacement"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._baselines(Replacement.resolve(self.replacement, self.model))

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters by name, as runs log them: a given baseline by its shape and digest."""
        return {**super().parameters, "baseline": described(self.baseline)}

    def _baselines(self, replacement: Replacement) -> tuple[Baseline, ...]:
        return resolve_baselines(self.baseline, self.model, replacement)

    def _integrate(self, game: Game, paths: Sequence[Path]) -> Generator[Path, Any, tuple[Floats, Floats]]:
        """Average over paths (text − baseline) · (the weighted sum of gradients on the path).

        Returns:
            For the paths' targets, the components, shape (targets, tokens, width), and the mean score of the baselines,
            shape (targets,).
        """
        products, values = [], []
        for path in paths:
            path.baseline.check(game.encoding)
            if known := len(paths) == 1 and path.baseline.record == "replacement":
                path = replace(path, needs_empty=True)
            else:
                # No text has these embeddings, so the score there comes with the path.
                path = path.with_start()
            result = yield path
            products.append(result.moments[0] * path.difference(game, result))
            chosen = slice(None) if path.targets is None else list(path.targets)
            values.append(game.empty[chosen].copy() if known else result.values[-1])
        return np.mean(products, axis=0), np.mean(values, axis=0)


def used_baselines(baselines: Sequence[Baseline]) -> dict[str, Any]:
    """Return what the baseline resolved to, for the parameters of a result."""
    records = [baseline.record for baseline in baselines]
    return {"baseline": records[0] if len(records) == 1 else records}


def check_noise(noise: object) -> None:
    """Refuse a noise level that is not a finite number of at least 0.

    Raises:
        InputError: it is none.
    """
    number = isinstance(noise, numbers.Real) and not isinstance(noise, bool)
    if not number or not 0 <= float(noise) < math.inf:  # type: ignore[arg-type]
        raise InputError(f"noise must be a finite number of at least 0, not {noise!r}")
