"""Explained versions in a real store, with scores that a test chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from interpreto_mlops.attributions.metrics.results import MetricResult
from interpreto_mlops.attributions.results import Attribution, AttributionSet, Target
from interpreto_mlops.audit.policies.evidence import Evidence, gather
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.granularity import word_spans
from interpreto_mlops.tracking import log_text_model, run, write_attributions
from interpreto_mlops.tracking.resolving import resolve
from interpreto_mlops.tracking.store import Store
from tests.conftest import build, word_tokenizer

TEXTS = tuple(f"the food was great number {i}" for i in range(30))


@dataclass(frozen=True)
class Version:
    """A registered version of a tiny classifier.

    Arguments:
        store: where it is.
        model: with its pinned address.
    """

    store: Store
    model: TextModel

    @property
    def uri(self) -> str:
        """The pinned address."""
        return str(self.model.uri)

    def explain(
        self,
        texts: Sequence[str] = TEXTS,
        *,
        method: str = "occlusion",
        scores: Mapping[str, float] | None = None,
        classes: Sequence[str] | None = None,
        metrics: Mapping[str, Any] | None = None,
        random: float = 0.5,
        higher: bool = False,
        data: TextDataset | None = None,
        parameters: Mapping[str, Any] | None = None,
        elements: Sequence[Sequence[tuple[int, int]]] | None = None,
    ) -> str:
        """Write a run: each word's score by `scores`, else 0.01 and falling, and each metric's values by text."""
        given = {"granularity": "word", "inference_mode": "logits", "replacement": "mask:4", **(parameters or {})}
        names = classes or ["positive"] * len(texts)
        spans = elements or [word_spans(text) for text in texts]
        items = [
            attribution(text, place, names[place], dict(scores or {}), method, given, spans[place])
            for place, text in enumerate(texts)
        ]
        results = [metric(name, method, values, random, higher, len(texts)) for name, values in (metrics or {}).items()]
        with run(self.store, kind="attributions", name=method) as log:
            write_attributions(log, AttributionSet(items), metrics=results, model=self.model, dataset=data, draw=False)
        return log.run_id

    def evidence(self, **given: Any) -> Evidence:
        """Gather what there is."""
        found = resolve(self.store, self.uri)
        tags = self.store.client.get_model_version(found.name, found.version).tags
        return gather(self.store, found, tags, **given)


def register(store: Store, name: str = "reviews", seed: int = 0) -> Version:
    """Register the next version of a tiny classifier."""
    plain = TextModel(build("bert", seed), word_tokenizer(), name="tiny")
    logged = log_text_model(store, None, plain, name=name, registered_model_name=name)
    return Version(store, TextModel(plain.model, plain.tokenizer, name=name, uri=logged.uri, model_id=logged.model_id))


def attribution(
    text: str, place: int, name: str, scores: Mapping[str, float], method: str, given: Mapping[str, Any], spans: Any
) -> Attribution:
    """One text's attribution to a class."""
    elements = tuple(text[start:end] for start, end in spans)
    values = [scores.get(word.lower(), 0.01 / (1 + rank)) for rank, word in enumerate(elements)]
    return Attribution(
        text=text,
        index=place,
        elements=elements,
        spans=np.asarray(spans, dtype=np.int64).reshape(-1, 2),
        scores=np.asarray([values], dtype=np.float64).reshape(1, -1),
        targets=(Target(0, name),),
        output=np.ones(1),
        baseline_output=np.zeros(1),
        standard_error=None,
        method=method,
        parameters=dict(given),
    )


def metric(name: str, method: str, values: Any, random: float, higher: bool, n: int) -> MetricResult:
    """A metric with these values, one for all texts or one each."""
    found = np.broadcast_to(np.asarray(values, dtype=np.float64), (n,)).copy()
    skipped = int(np.isnan(found).sum())
    return MetricResult(
        name,
        method,
        found,
        np.full(n, random),
        np.full(n, 0.9),
        higher,
        skipped={"too short": skipped} if skipped else {},
        parameters={"replacement": "auto", "n_random": 3, "seed": 0},
    )
