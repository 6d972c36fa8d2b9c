"""Testing with concept activation vectors: whether classes depend on a concept more than on random directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import stats

from interpreto_mlops.concepts.base import Activations, check_integer
from interpreto_mlops.concepts.dictionaries.neurons import NeuronsAsConcepts
from interpreto_mlops.concepts.importance import local_importance
from interpreto_mlops.concepts.probes.base import PROBES, Bools, Floats, Integers, Probe, gathered
from interpreto_mlops.concepts.probes.labels import check_names, groups_of, label_matrix
from interpreto_mlops.concepts.probes.linear import LinearProbe
from interpreto_mlops.concepts.rows import Rows, as_rows, data_facts
from interpreto_mlops.errors import DataError, InputError, UnknownNameError
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.observers import unobserved
from interpreto_mlops.text.datasets import TextDataset

MEASURES = ("tcav", "sensitivity")
"""`tcav`: the share of texts whose derivative along the vector is positive; `sensitivity`: the mean derivative along
the vector of norm 1, which knows its size."""

Cube = npt.NDArray[np.float64]


@dataclass(frozen=True)
class TCAVResult:
    """What classes make of concepts, beside what they make of random vectors.

    Arguments:
        names: of the concepts.
        classes: whose logits are differentiated, each on its own texts.
        n_texts: of each class.
        tcav: shares of texts whose derivative is positive, shape (concepts, classes, repetitions).
        sensitivity: mean derivatives along the vectors of norm 1, in units of the logit for a unit of activation.
        tcav_random, sensitivity_random: the same of vectors between random sets.
        n_rows: of the two sets of each vector, by concept.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    n_texts: tuple[int, ...]
    tcav: Cube
    sensitivity: Cube
    tcav_random: Cube
    sensitivity_random: Cube
    n_rows: tuple[int, ...]

    def p_values(self, measure: str = "tcav", *, corrected: bool = True) -> Floats:
        """Return the p-values of two-sided t-tests of a concept's repetitions against random ones (Welch's).

        Where all repetitions of a side agree, as shares of 0 or 1 often do, no variance can be told from them: the
        p-value is then at least that of their order, 2 / (2 · repetitions choose repetitions) for two such sides.

        Arguments:
            measure: `tcav` or `sensitivity`.
            corrected: times the number of tests, over concepts and classes (Bonferroni).

        Returns:
            Shape (concepts, classes).

        Raises:
            UnknownNameError: another measure.
        """
        if measure not in MEASURES:
            raise UnknownNameError("measure", measure, MEASURES)
        own, random = (np.asarray(getattr(self, name)) for name in (measure, f"{measure}_random"))
        raw = np.asarray(
            [[_welch(*pair) for pair in zip(*both, strict=True)] for both in zip(own, random, strict=True)]
        )
        return np.minimum(1.0, raw * raw.size) if corrected else raw

    def significant(self, measure: str = "tcav", level: float = 0.05) -> Bools:
        """Return which concepts matter to which classes after Bonferroni's correction, shape (concepts, classes)."""
        return self.p_values(measure) < level

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each concept and class: the means of both measures and of random vectors, and p-values."""
        tests = {measure: self.p_values(measure) for measure in MEASURES}
        lines = [
            {
                "concept": name,
                "class": label,
                "texts": self.n_texts[k],
                **{
                    column: value
                    for measure in MEASURES
                    for column, value in (
                        (measure, float(getattr(self, measure)[j, k].mean())),
                        (f"{measure}_random", float(getattr(self, f"{measure}_random")[j, k].mean())),
                        (f"{measure}_p", float(tests[measure][j, k])),
                    )
                },
            }
            for j, name in enumerate(self.names)
            for k, label in enumerate(self.classes)
        ]
        return pd.DataFrame(lines)


def _welch(own: Floats, random: Floats) -> float:
    """Return the p-value of a two-sided t-test; of samples without variance at least that of a permutation test."""
    # Shares are often all alike, and a variance that is rounding would be taken for one.
    shares = [0.0 if np.ptp(each) == 0 else float(each.var(ddof=1)) / len(each) for each in (own, random)]
    total, difference = sum(shares), float(own.mean() - random.mean())
    # Two of so many ways to deal the repetitions out divide them as far.
    least = min(1.0, 2.0 / math.comb(len(own) + len(random), len(own))) if min(shares) == 0 else 0.0
    if total == 0:
        return 1.0 if own[0] == random[0] else least
    freedom = total**2 / sum(share**2 / (len(each) - 1) for share, each in zip(shares, (own, random), strict=True))
    return max(least, float(2.0 * stats.t.sf(abs(difference) / math.sqrt(total), freedom)))


def tcav(
    split: Splitter,
    activations: Activations,
    labels: Any,
    texts: Sequence[str] | TextDataset,
    *,
    names: Sequence[str] | None = None,
    class_labels: Sequence[Any] | None = None,
    groups: Sequence[Any] | Integers | None = None,
    per: str | None = None,
    probe: str | LinearProbe = "logistic",
    repetitions: int = 20,
    most_rows: int = 500,
    layer: int | str | None = None,
    token_budget: int = 2048,
    seed: int = 0,
) -> TCAVResult:
    """Test whether classes depend on the directions of labelled concepts more than on random directions.

    Each repetition fits a linear probe between rows with the concept and rows without (its direction is the concept
    activation vector), and another one between two sets of rows without it. No text is in two repetitions' sets of the
    same kind: were the same rows used again and again, as in the paper, repetitions would agree with each other
    whatever the concept, and the t-test would find random concepts significant.

    A text's derivative along a vector says how its class's logit changes when all of its rows move that way (where a
    row is the mean of several tokens: all of these).

    Arguments:
        split: a classifier of texts, split at the layer of the activations.
        activations: of texts with and without the concepts, shape (rows, width).
        labels: of rows or texts, a column for each concept, as for `Probe.fit`.
        texts: whose classes are explained; best others than those of the activations.
        names: of the concepts.
        class_labels: the class of each text, by id or name; None for the class that the model predicts.
        groups: which rows belong together, where the activations are a tensor; by default each row is one.
        per: `row` or `text`, where both are as many.
        probe: a family of linear probes by name, or one with its parameters.
        repetitions: vectors of each concept, and random ones beside them; at least 2.
        most_rows: of each set.
        layer: the split point; None takes that of the activations, or the only one.
        token_budget: the most tokens of a batch, padding included; it changes nothing but speed.
        seed: of the sets.

    Raises:
        InputError: a model that does not classify texts, a probe without a direction, or what does not fit.
        DataError: too few texts with or without a concept for so many repetitions, or no text of any class.
        IntegrityError: activations of another model or layer.

    Source: Kim et al. 2018 (interpretability beyond feature attribution), sections 3.2 to 3.4.
    """
    if split.model.task != "classification":
        raise InputError(f"the model {split.model.name!r} is not a classifier of texts, so it has no class logits")
    check_integer("repetitions", repetitions, 2)
    check_integer("most_rows", most_rows, 2)
    maker = _linear(probe)
    rows = as_rows(activations)
    data_facts(rows)
    matrix = label_matrix(labels, rows, per)
    check_names(names, matrix.shape[1])
    by_class = _derivatives(split, rows, texts, class_labels, layer, token_budget)
    own = groups_of(rows, groups)
    drawn = [
        _vectors(maker, rows, matrix[:, j], own, repetitions, most_rows, np.random.default_rng([seed, j]), j)
        for j in range(matrix.shape[1])
    ]
    named = tuple(names) if names is not None else tuple(f"concept {j}" for j in range(matrix.shape[1]))
    concept, random = (np.stack([each[place] for each in drawn]) for place in range(2))
    return TCAVResult(
        named,
        tuple(by_class),
        tuple(len(each) for each in by_class.values()),
        *_measured(by_class, concept),
        *_measured(by_class, random),
        tuple(each[2] for each in drawn),
    )


def _linear(probe: str | LinearProbe) -> LinearProbe:
    made: Probe = PROBES.get(probe)() if isinstance(probe, str) else probe
    if not isinstance(made, LinearProbe):
        known = [name for name, family in PROBES.items() if issubclass(family, LinearProbe)]
        raise UnknownNameError("family of probes with a direction", made.name, known)
    return made


def _derivatives(
    split: Splitter,
    rows: Rows,
    texts: Sequence[str] | TextDataset,
    class_labels: Sequence[Any] | None,
    layer: int | str | None,
    token_budget: int,
) -> dict[str, Floats]:
    """Return by class the derivatives of its logit by the rows of its texts, shape (texts, width)."""
    coordinates = NeuronsAsConcepts()
    weights = {"mean": torch.zeros(rows.width), "scale": torch.tensor(1.0)}
    coordinates.complete(weights, [], rows.provenance)
    found: dict[str, list[Floats]] = {label: [] for label in split.model.labels}
    with unobserved():
        for local in local_importance(
            split,
            coordinates,
            texts,
            method="gradient",
            targets=class_labels,
            layer=layer,
            token_budget=token_budget,
        ):
            found[split.model.labels[local.targets[0].id]].append(local.totals[0])
    if not any(found.values()):
        raise DataError("there is no text with a token to differentiate a class of")
    return {label: np.stack(each) for label, each in found.items() if each}


def _measured(by_class: dict[str, Floats], vectors: Cube) -> tuple[Cube, Cube]:
    """Return both measures, (concepts, classes, repetitions), of vectors, shape (concepts, repetitions, width)."""
    along = [np.einsum("tw,crw->crt", gradients, vectors) for gradients in by_class.values()]
    return (
        np.stack([(each > 0).mean(axis=2) for each in along], axis=1),
        np.stack([each.mean(axis=2) for each in along], axis=1),
    )


def _vectors(
    probe: LinearProbe,
    rows: Rows,
    labels: Floats,
    groups: Integers,
    repetitions: int,
    most_rows: int,
    rng: np.random.Generator,
    concept: int,
) -> tuple[Floats, Floats, int]:
    """Return the vectors of a concept and random ones, both of shape (repetitions, width), and the rows of each set."""
    having, lacking = (np.flatnonzero(labels == value) for value in (1, 0))
    ours = _parts(having, groups, repetitions, rng, f"with concept {concept}")
    others = _parts(lacking, groups, repetitions, rng, f"without concept {concept}")
    pairs = _parts(lacking, groups, 2 * repetitions, rng, f"without concept {concept}")
    size = min(most_rows, *(len(part) for part in (*ours, *others, *pairs)))
    drawn = np.stack([rng.choice(part, size, replace=False) for part in (*ours, *others, *pairs)])
    needed = np.unique(drawn)
    values = gathered(rows, needed)
    first, second, random = np.split(np.searchsorted(needed, drawn), [repetitions, 2 * repetitions])
    fitted = [_direction(probe, values, *pair) for pair in zip(first, second, strict=True)]
    chance = [_direction(probe, values, *pair) for pair in zip(random[::2], random[1::2], strict=True)]
    return np.stack(fitted), np.stack(chance), size


def _parts(places: Integers, groups: Integers, n_parts: int, rng: np.random.Generator, what: str) -> list[Integers]:
    """Divide rows so that no group is in two parts, about equally many groups in each.

    Raises:
        DataError: fewer than two groups for each.
    """
    own = np.unique(groups[places])
    if len(own) < 2 * n_parts:
        raise DataError(
            f"{n_parts} sets of texts need at least two texts each, and there are only {len(own)} texts {what}; ask "
            "for fewer repetitions, or give more texts"
        )
    part_of = dict(zip(rng.permutation(own).tolist(), (np.arange(len(own)) % n_parts).tolist(), strict=True))
    parts = np.asarray([part_of[group] for group in groups[places].tolist()])
    return [places[parts == part] for part in range(n_parts)]


def _direction(probe: LinearProbe, values: Floats, first: Integers, second: Integers) -> Floats:
    """Return the direction of norm 1 from the rows of the second set to those of the first, shape (width,)."""
    # Calibration turns no direction but where it finds nothing, and would ask for more rows.
    fresh = type(probe)(**{**probe.parameters, "n_concepts": None, "calibration": "none"})
    both = torch.from_numpy(np.concatenate([values[first], values[second]])).float()
    with unobserved():
        fresh.fit(both, np.arange(len(both)) < len(first))
    direction: Floats = fresh.dictionary[0].double().numpy()
    norm = math.sqrt(float(direction @ direction))
    return direction / norm if norm > 0 else direction
