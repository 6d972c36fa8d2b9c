"""What a run says of simulatability: the score of each setting, each answer, and a page."""

from __future__ import annotations

from collections.abc import Mapping

from interpreto_mlops.llm.simulation import SimulationResult
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.data import DataReference
from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.visuals.simulation_html import render_page


def write_simulation(
    run: RunLog,
    results: Mapping[str, SimulationResult],
    *,
    facts: Mapping[str, object],
    title: str,
    model_id: str | None = None,
    dataset: TextDataset | DataReference | None = None,
) -> None:
    """Write how well a reader says what a model says.

    Arguments:
        run: an open run.
        results: by what explained; the names of metrics and files are those of a part where there are several.
        facts: what the page says of the job.
        title: of the page.
        model_id: of the logged dictionary, whose page shows the scores, too.
        dataset: the texts.
    """
    for name, result in results.items():
        part = run.part(name) if len(results) > 1 else run
        named = name if len(results) > 1 else None
        scores = {schema.metric_of_part(key, named): value for key, value in result.metrics.items()}
        run.metrics(scores, model_id=model_id, dataset=dataset)
        part.table(schema.SIMULATABILITY_SETTINGS, result.to_frame())
        part.frame(schema.SIMULATABILITY_ANSWERS, result.samples_frame())
    run.text(schema.SIMULATABILITY_HTML, render_page(results, title=title, facts=facts))
    run.summary(simulation_summary(results))


def simulation_summary(results: Mapping[str, SimulationResult]) -> str:
    """Return a few lines of markdown: the score, its gain, and chance."""
    rows = []
    for name, result in results.items():
        score = "refused" if result.score is None else f"{result.score:.3f}"
        gain = "" if result.gain is None or result.gain.score is None else f"{result.gain.score:+.3f}"
        chance = f"{result.chance.majority:.3f}"
        rows.append(f"| {schema.markdown(name)} | {schema.markdown(result.model)} | {score} | {gain} | {chance} |")
    head = ["| explanation | reader | score (E3) | gain over L2 | chance |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])
