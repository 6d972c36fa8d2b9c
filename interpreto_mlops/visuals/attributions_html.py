"""Attributions as a page: each text with its elements coloured, method under method, and the scores of the methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from interpreto_mlops.attributions.metrics.results import MetricResult
from interpreto_mlops.attributions.results import Attribution, AttributionSet
from interpreto_mlops.text.hiding import short
from interpreto_mlops.visuals import figures, page
from interpreto_mlops.visuals.highlight import Highlighted, highlight, tones_of
from interpreto_mlops.visuals.metric_names import MetricName, metric_name

_MAX_TEXTS = 50
_FRAGMENT_TEXTS = 10
_OPEN_TEXTS = 10
_MAX_TARGETS = 40
_MAX_ELEMENTS = 80
_MAX_CELLS = 40_000


@dataclass(frozen=True)
class _Row:
    """One method's scores of one target on one text."""

    attribution: Attribution
    target: str
    output: float
    baseline_output: float
    marks: Highlighted


@dataclass(frozen=True)
class _Cell:
    """One cell of a matrix: nothing where there is no score."""

    css_class: str
    style: str
    title: str


@dataclass(frozen=True)
class _Matrix:
    """The scores of several targets at once.

    Arguments:
        elements: the heads of the columns, each with whether a continuation begins there.
        rows: a target, its output, and its cells.
        left_out: what is not shown, in words.
    """

    elements: tuple[tuple[str, bool], ...]
    rows: tuple[tuple[str, float, tuple[_Cell, ...]], ...]
    left_out: str


@dataclass(frozen=True)
class _Group:
    """One method's scores of one text: a row for each target, and all of them as a matrix where there are several."""

    attribution: Attribution
    rows: tuple[_Row, ...]
    matrix: _Matrix | None


@dataclass(frozen=True)
class _Text:
    """One text with what all methods say about it."""

    index: int
    text: str
    truncated: bool
    groups: tuple[_Group, ...]


@dataclass(frozen=True)
class _Score:
    """One metric of one method; places are per cent of the metric's axis."""

    metric: MetricName
    result: MetricResult
    low: float
    high: float
    places: dict[str, float]
    first: bool
    rows: int


def render_page(
    sets: Sequence[AttributionSet],
    *,
    title: str,
    scores: Sequence[MetricResult] = (),
    facts: Mapping[str, object] | None = None,
    max_texts: int | None = None,
) -> str:
    """Return a whole HTML page.

    Arguments:
        sets: one for each method; where they explain the same texts, the methods stand beneath each other.
        title: of the page.
        scores: metrics of the methods; those with curves are drawn, too.
        facts: what else the head should say (model, data set, …).
        max_texts: texts shown, 50 by default, so that a browser shows it well; the page says how many are left out.
    """
    texts = _texts(sets)
    max_texts = _affordable(sets, texts[: _MAX_TEXTS if max_texts is None else max_texts])
    results = list(scores)
    return page.render(
        "attributions.html",
        title=title,
        facts=page.facts(facts or {}, _common_parameters(sets)),
        methods=[(item, page.facts(_own_parameters(item, sets))) for item in sets],
        scores=list(_scores(results)),
        curves=figures.to_png(figures.curves_figure(results)) if any(r.curve is not None for r in results) else b"",
        texts=_views(sets, texts[:max_texts]),
        n_texts=len(texts),
        n_open=_OPEN_TEXTS,
    )


def render_fragment(attributions: AttributionSet, *, max_texts: int = _FRAGMENT_TEXTS) -> str:
    """Return a piece of HTML with its own style, for a notebook cell.

    Arguments:
        attributions: the scores.
        max_texts: texts shown; the fragment says how many are left out.
    """
    texts = _texts([attributions])
    max_texts = _affordable([attributions], texts[:max_texts])
    return page.render(
        "attributions_fragment.html",
        texts=_views([attributions], texts[:max_texts]),
        n_texts=len(texts),
        n_open=max_texts,
        summary=repr(attributions),
    )


def _texts(sets: Sequence[AttributionSet]) -> list[tuple[int, str]]:
    return list(dict.fromkeys((item.index, item.text) for each in sets for item in each))


def _views(sets: Sequence[AttributionSet], texts: Sequence[tuple[int, str]]) -> list[_Text]:
    found: dict[tuple[int, str], list[Attribution]] = {key: [] for key in texts}
    for each in sets:
        for item in each:
            if (item.index, item.text) in found:
                found[item.index, item.text].append(item)
    return [
        _Text(index, text, any(item.truncated for item in items), tuple(_group(item) for item in items))
        for (index, text), items in found.items()
    ]


def _affordable(sets: Sequence[AttributionSet], texts: Sequence[tuple[int, str]]) -> int:
    """Return how many of the texts a browser shows well; the first one always."""
    cells = dict.fromkeys(texts, 0)
    for item in (item for each in sets for item in each if (item.index, item.text) in cells):
        cells[item.index, item.text] += item.scores.size
    total = np.cumsum(list(cells.values()))
    return max(int((total <= _MAX_CELLS).sum()), min(len(cells), 1))


def _group(item: Attribution) -> _Group:
    rows = tuple(_row(item, target) for target in range(min(len(item.targets), _MAX_TARGETS)))
    return _Group(item, rows, _matrix(item) if len(item.targets) > 1 and len(item) else None)


def _row(item: Attribution, target: int) -> _Row:
    output, baseline = float(item.output[target]), float(item.baseline_output[target])
    return _Row(item, _target_name(item, target), output, baseline, highlight(item, target))


def _target_name(item: Attribution, target: int) -> str:
    explained = item.targets[target]
    name = page.named(short(explained.name))
    if item.prompt_tokens is not None:
        name += f" ({target + 1} of {len(item.targets)})"
    return (
        name if explained.contrast_name is None else f"{name} rather than {page.named(short(explained.contrast_name))}"
    )


def _matrix(item: Attribution) -> _Matrix:
    size = np.where(np.isfinite(item.scores), np.abs(item.scores), 0.0).max(axis=0)
    columns = sorted(np.argsort(-size, kind="stable")[:_MAX_ELEMENTS].tolist())
    begins = [i for i in columns if item.boundary is not None and item.spans[i, 0] >= item.boundary][:1]
    shown = min(len(item.targets), _MAX_TARGETS)
    left_out = [f"{len(item.targets) - shown} more targets"] if shown < len(item.targets) else []
    left_out += [f"{len(item) - len(columns)} elements of smaller scores"] if len(columns) < len(item) else []
    return _Matrix(
        tuple((page.named(short(item.elements[i])), i in begins) for i in columns),
        tuple(
            (page.named(short(item.targets[t].name)), float(item.output[t]), tuple(_cells(item, t, columns, begins)))
            for t in range(shown)
        ),
        " and ".join(left_out),
    )


def _cells(item: Attribution, target: int, columns: Sequence[int], begins: Sequence[int]) -> Iterator[_Cell]:
    scores = item.scores[target, columns]
    for i, score, tone in zip(columns, scores, tones_of(scores, item.scores), strict=True):
        edge = " begins" if i in begins else ""
        what = f"{page.excerpt(item.elements[i], 24)} → {page.excerpt(item.targets[target].name, 24)}"
        if np.isnan(score):
            yield _Cell(f"nothing{edge}", "", f"{what}: nothing to attribute")
        else:
            yield _Cell(f"{tone.sign}{edge}", f"background:{tone.colour}", f"{what}: {page.signed(score)}")


def _common_parameters(sets: Sequence[AttributionSet]) -> dict[str, object]:
    """The parameters that all methods have with the same value: they belong to the head of the page."""
    if not sets:
        return {}
    first, rest = sets[0].parameters, [other.parameters for other in sets[1:]]
    return {
        name: value for name, value in first.items() if all(name in other and other[name] == value for other in rest)
    }


def _own_parameters(item: AttributionSet, sets: Sequence[AttributionSet]) -> dict[str, object]:
    common = _common_parameters(sets)
    return {name: value for name, value in item.parameters.items() if name not in common}


def _scores(results: Sequence[MetricResult]) -> Iterator[_Score]:
    """Put the results of one metric together, on one axis."""
    for name in dict.fromkeys(result.name for result in results):
        group = [result for result in results if result.name == name]
        intervals = [result.interval() for result in group]
        marks = [
            {"mean": result.mean, "random": result.random_mean, "low": low, "high": high}
            for result, (low, high) in zip(group, intervals, strict=True)
        ]
        known = metric_name(name)
        metric = MetricName(name, group[0].higher_is_better, known.meaning)
        for i, (result, (low, high), places) in enumerate(zip(group, intervals, _placed(marks), strict=True)):
            yield _Score(metric, result, low, high, places, first=i == 0, rows=len(group))


def _placed(marks: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Turn values into per cent of an axis that holds zero and all of them; NaN has no place."""
    finite = [value for row in marks for value in row.values() if abs(value) < float("inf")]
    low, high = min([0.0, *finite]), max([0.0, *finite])
    # A little air at both ends, so that no mark is cut.
    low, high = low - 0.03 * (high - low), high + 0.03 * (high - low)
    width = (high - low) or 1.0
    return [
        {name: round(100 * (value - low) / width, 2) for name, value in row.items() if abs(value) < float("inf")}
        for row in marks
    ]
