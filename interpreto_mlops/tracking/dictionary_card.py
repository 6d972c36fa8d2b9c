"""What lies beside a saved dictionary for people and queries: a model card, the labels as a table, the metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.interpretation import DEAD
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import redact

if TYPE_CHECKING:
    from interpreto_mlops.concepts.importance import ConceptImportance
    from interpreto_mlops.concepts.interpretation import ConceptDescription

_TOP_CONCEPTS = 20
_TOP_OF_A_CLASS = 5
_MAX_TEXT = 200


def write_card(
    folder: Path,
    dictionary: ConceptDictionary,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float] | None = None,
    importance: ConceptImportance | None = None,
) -> None:
    """Write `README.md`, and `labels.json` and `metrics.json` where there is something to put in.

    Arguments:
        folder: of the MLflow model.
        dictionary: fitted.
        facts: the flavor's entry in `MLmodel`.
        metrics: by the schema's keys.
        importance: of the concepts for the model's classes.
    """
    values = dict(metrics or {})
    card = model_card(dictionary, facts, values, importance)
    (folder / schema.MODEL_CARD).write_text(card, encoding="utf-8")
    if dictionary.descriptions:
        table = labels_table(dictionary.descriptions)
        rows = [[_plain(cell) for cell in row] for row in table.itertuples(index=False, name=None)]
        _write_json(folder / schema.MODEL_LABELS, {"columns": list(table.columns), "data": rows})
    if values:
        _write_json(folder / schema.MODEL_METRICS, {schema.key(name): _plain(value) for name, value in values.items()})


def labels_table(descriptions: Sequence[ConceptDescription]) -> pd.DataFrame:
    """Return one row for each concept: its number, label, words, how often and how strongly it is active, contexts."""
    return pd.DataFrame(
        [
            {
                "concept": description.concept,
                "label": description.label,
                "origin": description.origin,
                "words": ", ".join(f"{word.word} {word.activation:.3f}" for word in description.words),
                "density": description.density,
                "max_activation": description.max_activation,
                "context": " | ".join(f"{c.before}[{c.word}]{c.after}" for c in description.contexts[:2]),
            }
            for description in descriptions
        ]
    )


def model_card(
    dictionary: ConceptDictionary,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float],
    importance: ConceptImportance | None = None,
) -> str:
    """Return the card in markdown; text that comes from data or users is escaped and shortened."""
    parts = [
        f"# {dictionary.n_concepts} concepts by {_shown(dictionary.name)}",
        _what(dictionary, facts),
        _table(("fact", "value"), _facts(dictionary, facts)),
    ]
    if metrics:
        rows = [(name, f"{value:.6g}") for name, value in metrics.items()]
        parts += ["## Metrics", _table(("metric", "value"), rows)]
    if dictionary.descriptions:
        parts += ["## Top concepts", _concepts(dictionary.descriptions)]
        if importance is not None:
            parts += ["## Top concepts of each class", _classes(dictionary.descriptions, importance)]
    return "\n\n".join([*parts, "## Use", _USE]) + "\n"


_USE = """\
```python
import interpreto_mlops as im
import mlflow

dictionary = im.load_dictionary(uri)                  # the dictionary, with labels and history
codes = mlflow.pyfunc.load_model(uri).predict(frame)  # a column `text`, or `activations` with a list in each row
```

The files are safetensors and JSON: nothing is unpickled. Texts load the base model from its pinned address; a model of
another sha256 is refused."""


def _what(dictionary: ConceptDictionary, facts: Mapping[str, Any]) -> str:
    place = f"layer {_shown(facts['layer'])}" if facts.get("layer") else "activations of an unknown layer"
    model = f" of {_shown(facts['base_model_name'])}" if facts.get("base_model_name") else ""
    rows = dictionary.provenance.get("n_rows")
    learned = f", learned from {rows} rows" if rows else ""
    return f"A dictionary of directions of width {dictionary.width} at {place}{model}{learned}."


def _facts(dictionary: ConceptDictionary, facts: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    data: Mapping[str, Any] = dictionary.provenance.get("data") or {}
    named = {
        "base model": facts.get("base_model"),
        "base model revision": facts.get("base_model_revision"),
        "base model id": facts.get("base_model_id"),
        "base model sha256": facts.get("base_model_sha256"),
        "layer": facts.get("layer"),
        "granularity": facts.get("granularity"),
        "aggregation": facts.get("aggregation"),
        "normalisation": _normalisation(facts.get("normalisation")),
        "data set": data.get("name"),
        "data digest": facts.get("data_digest"),
        "texts": data.get("n_texts"),
        "parameters": json.dumps(dictionary.parameters, default=str),
        "weights": ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in dictionary.weights.items()),
        "made with": ", ".join(f"{package} {version}" for package, version in dictionary.versions.items()),
    }
    return ((name, value) for name, value in named.items() if value is not None)


def _normalisation(said: Mapping[str, float] | None) -> str | None:
    if said is None:
        return None
    return f"rows minus a mean of norm {said['mean_norm']:.6g}, divided by {said['scale']:.6g}"


def _concepts(descriptions: Sequence[ConceptDescription]) -> str:
    """Return the concepts that are active most strongly, those with the same words one after the other."""
    alive = [each for each in descriptions if each.label != DEAD]
    best = sorted(alive, key=lambda each: -each.max_activation)[:_TOP_CONCEPTS]
    rows = [
        (each.label, each.concept, f"{100 * each.density:.2f} %", f"{each.max_activation:.4g}")
        for each in sorted(best, key=lambda each: (each.label, each.concept))
    ]
    shown = f"{len(rows)} of {len(descriptions)}, the most strongly active ones by label; all are in `labels.json`."
    return shown + "\n\n" + _table(("label", "concept", "active in rows", "largest code"), rows)


def _classes(descriptions: Sequence[ConceptDescription], importance: ConceptImportance) -> str:
    labels = {each.concept: each.label for each in descriptions}
    rows = [
        (name, labels.get(concept, ""), concept, f"{importance.values[place, concept]:+.4g}")
        for place, name in enumerate(importance.classes)
        for concept in importance.top(place, _TOP_OF_A_CLASS)
    ]
    return f"By {_shown(importance.method)}.\n\n" + _table(("class", "label", "concept", "importance"), rows)


def _table(head: Sequence[str], rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *([_shown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _shown(value: object) -> str:
    text = redact(str(value))
    return schema.markdown(text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + " …")


def _plain(value: Any) -> Any:
    """JSON has no NaN: null says the same."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
