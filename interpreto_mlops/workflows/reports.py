"""The report run of a suite: one page that compares its cells, a readable summary, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pandas as pd

from interpreto_mlops.attributions.comparison import FEWEST, Comparison
from interpreto_mlops.text.hiding import short
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import redact
from interpreto_mlops.tracking.dictionary_facts import keepable
from interpreto_mlops.tracking.links import run_url
from interpreto_mlops.tracking.runs import RunLog, run
from interpreto_mlops.visuals.comparison_html import comparison_blocks, comparison_figures
from interpreto_mlops.visuals.metric_names import metric_name
from interpreto_mlops.visuals.page import arrow
from interpreto_mlops.visuals.report_html import (
    Block,
    Cell,
    Column,
    Paragraph,
    Report,
    Section,
    Table,
    render_page,
)
from interpreto_mlops.workflows.concept_cells import ConceptCell
from interpreto_mlops.workflows.job import Job

_FIGURES = {
    "comparison": schema.REPORT_COMPARISON,
    "cost": schema.REPORT_COST,
    "curves": schema.REPORT_CURVES,
}
_CONCEPT_METRICS = (
    "reconstruction/r2",
    "reconstruction/mse",
    "complexity/l0",
    "complexity/dead",
    "stability/stability",
    "stability/stability_random",
)


@contextmanager
def report_run(job: Job, title: str) -> Iterator[RunLog]:
    """Open the report run of the job's suite; under `mlflow run` it is the run that MLflow has opened already.

    It closes as FAILED when anything inside fails.
    """
    with run(
        job.store,
        kind="report",
        name=title,
        suite=job.suite,
        tags=job.tags(),
        params={"model": job.model.name, "task": job.model.task},
        run_id=job.store.adopt_project_run(),
    ) as log:
        log.input(job.dataset, "explained")
        yield log


def write_report(
    job: Job,
    log: RunLog,
    title: str,
    attributions: Comparison | None = None,
    concepts: Sequence[ConceptCell] = (),
    facts: dict[str, object] | None = None,
) -> None:
    """Write the comparison page, its figures, the summary and what the cells have in common into the report run."""
    concepts = [replace(cell, dictionary=keepable(cell.dictionary)) for cell in concepts]
    sections, lead = [], []
    if attributions is not None:
        sections.append(_attribution_section(job, log, attributions))
        lead.append(_attribution_lead(attributions))
    if concepts:
        sections.append(_concept_section(job, log, concepts))
        lead.append(_concept_lead(concepts))
    known: dict[str, object] = {"model": job.model.uri}
    known |= {"data set": f"{job.dataset.name} ({len(job.dataset)} texts)", "suite": job.suite}
    if attributions is not None and (explained := _concepts_explained(attributions)):
        known["explained"] = explained
    report = Report(
        title=title,
        sections=sections,
        lead=" ".join(lead),
        facts={**known, **(facts or {})},
        command=redact(job.command),
    )
    log.text(schema.REPORT_HTML, render_page(report))
    log.summary(_summary(job, title, " ".join(lead), attributions, concepts))
    log.write_environment()


def _concepts_explained(comparison: Comparison) -> str:
    """Say which concepts are explained, by their numbers, for their names may hold words; nothing where none is."""
    sets = [each for each in comparison.explanations.values() if each.layer is not None]
    if not sets:
        return ""
    numbers = sorted({target.id for each in sets for item in each for target in item.targets})
    concepts = ", ".join(map(str, numbers))
    family = sets[0].parameters.get("dictionary", "")
    return f"concept{'s' * (len(numbers) > 1)} {concepts} of a {family} dictionary of {sets[0].layer}"


def _attribution_section(job: Job, log: RunLog, comparison: Comparison) -> Section:
    drawn = {name: (figure, alt) for name, figure, alt in comparison_figures(comparison)}
    for name, (figure, _) in drawn.items():
        log.figure(_FIGURES[name], figure)
    if len(comparison.table):
        log.table(schema.REPORT_METHODS, comparison.table)
    if len(comparison.pairs):
        log.table(schema.REPORT_PAIRS, comparison.pairs)
    links = {label: _link(job, run_id) for label, run_id in comparison.run_ids.items()}
    return Section("Attributions", comparison_blocks(comparison, links, drawn))


def _concept_section(job: Job, log: RunLog, cells: Sequence[ConceptCell]) -> Section:
    names = [name for name in _CONCEPT_METRICS if any(name in cell.metrics for cell in cells)]
    columns = [Column("layer"), Column("method"), Column("concepts", True, digits=0), Column("seed", True, digits=0)]
    for name in names:
        known = metric_name(name)
        columns.append(Column(known.title, True, known.higher_is_better, known.meaning))
    columns.append(Column("registered as"))
    rows: list[list[str | int | float | Cell | None]] = []
    for cell in cells:
        registered = None if cell.registered is None else "{} v{}".format(*cell.registered)
        rows.append(
            [
                cell.path,
                Cell(cell.dictionary.name, link=_link(job, cell.run_id)),
                cell.dictionary.n_concepts,
                cell.dictionary.seed,
                *(Cell(cell.metrics.get(name), best=bool(registered) and name == cell.selected_by) for name in names),
                registered,
            ]
        )
    where = "On texts that they were not fitted on" if cells[0].held_out else "On the texts that they were fitted on"
    blocks: list[Block] = [Table(columns, rows, f"{where}; the marked value decided what is registered.")]
    for cell in cells:
        if cell.registered is not None:
            blocks += _labels(cell)
    stable = {
        f"stability/{_group(cell)}": cell.metrics["stability/stability"]
        for cell in cells
        if "stability/stability" in cell.metrics
    }
    if stable:
        log.metrics(stable)
    return Section("Concepts", blocks)


def _group(cell: ConceptCell) -> str:
    return f"{schema.slugify(cell.path)}-{cell.dictionary.name}-{cell.dictionary.n_concepts}"


def _labels(cell: ConceptCell) -> list[Block]:
    """For each class the concepts that speak most for it, by their words."""
    importance, descriptions = cell.importance, cell.dictionary.descriptions or []
    if importance is None or not descriptions:
        return []
    labels = {description.concept: description.label for description in descriptions}
    rows: list[list[str | int | float | Cell | None]] = []
    for number, name in enumerate(importance.classes):
        row = importance.values[number]
        top = [i for i in importance.top(number, 6) if row[i] > 0][:3]
        rows.append([name, importance.n_texts[number], " · ".join(short(labels.get(i, f"concept {i}")) for i in top)])
    columns = [Column("class"), Column("texts", True, digits=0), Column("concepts that speak most for it")]
    title = f"What {cell.path} uses ({cell.dictionary.name})"
    return [Paragraph(title), Table(columns, rows)]


def _link(job: Job, run_id: str) -> str:
    return run_url(job.store, run_id)


def _attribution_lead(comparison: Comparison) -> str:
    """Say which method has the best mean of most metrics, and which paired differences are more than chance."""
    n_methods, best = len(comparison.explanations), comparison.table[comparison.table["best"].astype(bool)]
    if best.empty:
        return f"{n_methods} attribution methods." if n_methods > 1 else "One attribution method."
    wins = best["method"].value_counts()
    first = [label for label in comparison.explanations if wins.get(label, 0) == wins.max()]
    by = f"{wins.max()} of {len(best)} metrics"
    if n_methods == 1:
        return "One attribution method, scored beside random rankings."
    if len(first) == 1:
        lead = f"{first[0]} is the best of {n_methods} methods by {by}."
    else:
        lead = f"{', '.join(first[:-1])} and {first[-1]} are the best of {n_methods} methods, by {by} each."
    if comparison.pairs.empty:
        return lead
    significant, count = int((comparison.pairs["better"] != "").sum()), len(comparison.pairs)
    most = int(comparison.pairs["texts"].max())
    if most < FEWEST:
        return f"{lead} {most} texts are too few for any paired difference to be significant; it takes {FEWEST}."
    return f"{lead} {significant} of {count} paired differences are significant."


def _concept_lead(cells: Sequence[ConceptCell]) -> str:
    registered = [cell for cell in cells if cell.registered is not None]
    layers = len({cell.path for cell in cells})
    text = f"{len(cells)} concept dictionaries at {layers} layer{'s' if layers > 1 else ''}."
    if registered:
        names = ", ".join("{} v{}".format(*cell.registered) for cell in registered if cell.registered)
        text += f" Registered: {names}."
    return text


def _summary(job: Job, title: str, lead: str, attributions: Comparison | None, concepts: Sequence[ConceptCell]) -> str:
    """Return the run's description in markdown: the finding, the tables, where to look."""
    lines = [f"**{schema.markdown(title)}**", "", schema.markdown(lead), ""]
    if attributions is not None and len(attributions.table):
        lines += [*_markdown_table(*_attribution_rows(attributions)), ""]
    if concepts:
        names = [name for name in _CONCEPT_METRICS if name in concepts[0].metrics]
        heads = ["layer", "method", "concepts", "seed", *(name.rsplit("/", 1)[-1] for name in names), "registered"]
        rows = [
            [
                cell.path,
                cell.dictionary.name,
                str(cell.dictionary.n_concepts),
                str(cell.dictionary.seed),
                *(f"{cell.metrics[name]:.3f}" if name in cell.metrics else "–" for name in names),
                "" if cell.registered is None else "{} v{}".format(*cell.registered),
            ]
            for cell in concepts
        ]
        lines += [*_markdown_table(heads, rows), ""]
    lines.append(
        f"The comparison is in the artifact `{schema.REPORT_HTML}`. All runs of this job carry the tag "
        f"`{schema.TAG_SUITE}` = `{job.suite}`: group the runs table by it."
    )
    return "\n".join(lines)


def _attribution_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    heads, rows = ["method"], []
    known = {(row["method"], row["metric"]): row for row in comparison.table.to_dict("records")}
    metrics = list(dict.fromkeys(comparison.table["metric"]))
    for metric in metrics:
        higher = next(row["higher_is_better"] for (_, name), row in known.items() if name == metric)
        heads.append(f"{metric} {arrow(higher)}")
    for label in comparison.explanations:
        cells = [known.get((label, metric)) for metric in metrics]
        rows.append([label, *("–" if cell is None else _markdown_score(cell) for cell in cells)])
    return heads, rows


def _markdown_score(row: Mapping[Any, Any]) -> str:
    return f"{row['mean']:.3f} ({row['low']:.3f} … {row['high']:.3f}, random {row['random_mean']:.3f})"


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    frame = pd.DataFrame(rows, columns=list(heads))
    lines = ["| " + " | ".join(schema.markdown(head) for head in frame.columns) + " |", "|" + " --- |" * len(heads)]
    return lines + [
        "| " + " | ".join(schema.markdown(value) for value in row) + " |" for row in frame.itertuples(index=False)
    ]
