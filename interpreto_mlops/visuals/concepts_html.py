"""Concepts as a page: what each one responds to, and how much it speaks for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from interpreto_mlops.text.hiding import short
from interpreto_mlops.visuals import page
from interpreto_mlops.visuals.metric_names import MetricName, metric_name

if TYPE_CHECKING:
    from interpreto_mlops.concepts.importance import ConceptImportance
    from interpreto_mlops.concepts.interpretation import ConceptDescription

_MAX_CARDS = 60
_MAX_CLASSES = 24
_PER_CLASS = 8
_CLASSES_ON_CARD = 3
_MIN_SHARE = 0.005
_METHODS = {"gradient_x_activation": "gradient × activation"}


@dataclass(frozen=True)
class _Bar:
    """A signed bar: its width is per cent of half the track."""

    label: str
    value: float
    width: float
    concept: int = -1
    linked: bool = False

    @property
    def sign(self) -> str:
        return "against" if self.value < 0 else "for"


@dataclass(frozen=True)
class _ClassView:
    """The concepts that count most for one class."""

    name: str
    n_texts: int
    bars: tuple[_Bar, ...]


@dataclass(frozen=True)
class _Card:
    """One concept."""

    description: ConceptDescription
    words: tuple[_Bar, ...]
    contexts: tuple[tuple[object, float], ...]
    classes: tuple[_Bar, ...]


def render_page(
    descriptions: Sequence[ConceptDescription],
    importance: ConceptImportance | None,
    *,
    title: str,
    facts: Mapping[str, object],
    metrics: Mapping[str, float],
    higher_is_better: Mapping[str, bool] | None = None,
    max_concepts: int = _MAX_CARDS,
) -> str:
    """Return a whole HTML page.

    Arguments:
        descriptions: one for each concept.
        importance: of the concepts for the classes; without it the cards keep the order of `descriptions`.
        title: of the page.
        facts: model, layer, method, data, …
        metrics: by their names in the run schema.
        higher_is_better: direction of metrics whose name alone does not say it.
        max_concepts: cards shown, so that the page stays small enough for a browser; it says how many are left out.
    """
    living = [description for description in descriptions if description.density > 0]
    shares = None if importance is None else np.nan_to_num(np.asarray(importance.normalised, dtype=np.float64))
    shown = _sorted(living, shares)[:max_concepts]
    linked = {description.concept for description in shown}
    labels = {description.concept: short(description.label) for description in descriptions}
    return page.render(
        "concepts.html",
        title=title,
        facts=page.facts(facts, {"Concepts": f"{len(descriptions)}"}),
        metrics=[(_directed(name, higher_is_better or {}), value) for name, value in metrics.items()],
        classes=[] if importance is None or shares is None else _classes(importance, shares, labels, linked),
        method="" if importance is None else _METHODS.get(importance.method, importance.method.replace("_", " ")),
        n_classes=0 if importance is None else len(importance.classes),
        has_negative=any(word.activation < 0 for description in shown for word in description.words),
        cards=[_card(description, importance, shares) for description in shown],
        n_living=len(living),
        dead=[description.concept for description in descriptions if description.density == 0],
        sorted_by_importance=shares is not None,
    )


def _sorted(
    descriptions: Sequence[ConceptDescription], shares: npt.NDArray[np.float64] | None
) -> list[ConceptDescription]:
    if shares is None:
        return list(descriptions)
    largest = np.abs(shares).max(axis=0, initial=0.0)
    return sorted(descriptions, key=lambda description: -largest[description.concept])


def _directed(name: str, higher_is_better: Mapping[str, bool]) -> MetricName:
    known = metric_name(name)
    return MetricName(name, higher_is_better.get(name, known.higher_is_better), known.meaning)


def _classes(
    importance: ConceptImportance, shares: npt.NDArray[np.float64], labels: Mapping[int, str], linked: set[int]
) -> list[_ClassView]:
    limit = float(np.abs(shares).max(initial=0.0)) or 1.0
    views = []
    for row, name, n_texts in zip(shares[:_MAX_CLASSES], importance.classes, importance.n_texts, strict=False):
        top = np.argsort(-np.abs(row), kind="stable")[:_PER_CLASS].tolist()
        bars = tuple(
            _Bar(labels.get(c, ""), float(row[c]), _width(row[c], limit), c, c in linked)
            for c in top
            if abs(row[c]) >= _MIN_SHARE
        )
        views.append(_ClassView(name, n_texts, bars))
    return views


def _card(
    description: ConceptDescription, importance: ConceptImportance | None, shares: npt.NDArray[np.float64] | None
) -> _Card:
    # A signed concept responds below zero, too, and its maximum alone would not be the largest size.
    sizes = [abs(word.activation) for word in description.words] + [abs(c.activation) for c in description.contexts]
    limit = max(sizes, default=0.0) or 1.0
    classes: tuple[_Bar, ...] = ()
    if importance is not None and shares is not None:
        column = shares[:, description.concept]
        top = np.argsort(-np.abs(column), kind="stable")[:_CLASSES_ON_CARD].tolist()
        largest = float(np.abs(shares).max(initial=0.0)) or 1.0
        classes = tuple(
            _Bar(importance.classes[i], float(column[i]), _width(column[i], largest))
            for i in top
            if abs(column[i]) >= _MIN_SHARE
        )
    return _Card(
        description,
        tuple(_Bar(short(word.word), word.activation, _width(word.activation, limit)) for word in description.words),
        tuple(
            (replace(context, word=short(context.word)), 0.15 + 0.55 * abs(context.activation) / limit)
            for context in description.contexts
        ),
        classes,
    )


def _width(value: float, limit: float) -> float:
    return round(100 * min(abs(float(value)) / limit, 1.0), 1)
