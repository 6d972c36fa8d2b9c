"""The report of a probe job: which layer knows what, as a table, a figure and a line to read first."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from interpreto_mlops.text.hiding import short
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import redact
from interpreto_mlops.tracking.dictionary_facts import keepable
from interpreto_mlops.tracking.links import run_url
from interpreto_mlops.tracking.runs import RunLog
from interpreto_mlops.visuals import figures
from interpreto_mlops.visuals.metric_names import metric_name
from interpreto_mlops.visuals.probing import LayerScore, probing_figure
from interpreto_mlops.visuals.report_html import Block, Cell, Column, Picture, Report, Section, Table, render_page
from interpreto_mlops.workflows.job import Job
from interpreto_mlops.workflows.probe_cells import SHOWN, ProbeCell, best_of, probe_table

_DRAWN = ("balanced_accuracy", "selectivity")
_FOLDS = "Means over held-out folds, with 95 % intervals; the best of each label is marked."


def write_probe_report(job: Job, log: RunLog, title: str, cells: Sequence[ProbeCell]) -> None:
    """Write the page, the figure, the table and the summary of a probe job into the report run."""
    figure = layers_figure(cells)
    log.figure(schema.REPORT_PROBING, figure)
    frame = probe_table(list(cells))
    log.table(schema.REPORT_PROBES, frame)
    alt = "Balanced accuracy and selectivity of each probe over the layers"
    blocks: list[Block] = [_table(job, cells), Picture(figures.to_png(figure), alt, _caption()), _concepts(cells)]
    data = f"{job.dataset.name} ({len(job.dataset)} texts)"
    facts = {"model": job.model.uri, "data set": data, "suite": job.suite}
    lead = _lead(cells)
    page = Report(title, [Section("Probes", blocks)], lead=lead, facts=facts, command=redact(job.command))
    log.text(schema.REPORT_HTML, render_page(page))
    log.summary(_summary(job, title, lead, cells))
    log.write_environment()


def layers_figure(cells: Sequence[ProbeCell]) -> Figure:
    """Draw the scores of probes over layers, a line for each method and label."""
    layers = list(dict.fromkeys(cell.path for cell in cells))
    named = [str(next(cell.layer for cell in cells if cell.path == path)) for path in layers]
    at = {(cell.path, _called(cell)): cell for cell in cells}
    probes = list(dict.fromkeys(_called(cell) for cell in cells))
    panels = {
        f"probing/{score}": {probe: [_score(at[path, probe], score) for path in layers] for probe in probes}
        for score in _DRAWN
    }
    return probing_figure(named, panels)


def _called(cell: ProbeCell) -> str:
    return f"{cell.label}, {cell.probe.name}"


def _score(cell: ProbeCell, name: str) -> LayerScore:
    low, high = cell.known.interval(name)
    chance = cell.metrics["probing/control"] if name == "balanced_accuracy" else None
    return LayerScore(cell.metrics[f"probing/{name}"], low, high, chance)


def _caption() -> str:
    return "Lines are means over held-out folds with their 95 % intervals; dashed: the same probe on its control task."


def _best(cells: Sequence[ProbeCell], label: str, metric: str) -> ProbeCell:
    return best_of([cell for cell in cells if cell.label == label], metric)


def _is_best(cells: Sequence[ProbeCell], cell: ProbeCell, metric: str) -> bool:
    return metric_name(metric).higher_is_better is not None and _best(cells, cell.label, metric) is cell


def _table(job: Job, cells: Sequence[ProbeCell]) -> Table:
    columns = [Column("layer"), Column("label"), Column("method"), Column("concepts", True, digits=0)]
    for name in SHOWN.values():
        known = metric_name(name)
        columns.append(Column(known.title, True, known.higher_is_better, known.meaning))
    columns.append(Column("registered as"))
    rows: list[list[str | int | float | Cell | None]] = []
    for cell in cells:
        marked = [
            Cell(cell.metrics[name], best=_is_best(cells, cell, name), note=_interval(cell, name))
            for name in SHOWN.values()
        ]
        registered = None if cell.registered is None else "{} v{}".format(*cell.registered)
        link = run_url(job.store, cell.run_id)
        rows.append(
            [cell.path, cell.label, Cell(cell.probe.name, link=link), cell.probe.n_concepts, *marked, registered]
        )
    return Table(columns, rows, _FOLDS)


def _interval(cell: ProbeCell, metric: str) -> str:
    low, high = cell.known.interval(metric.rsplit("/", 1)[-1])
    return "" if math.isnan(low) else f"{low:.3f} to {high:.3f}"


def _concepts(cells: Sequence[ProbeCell]) -> Table:
    """For each label the concepts of its most selective probe, one by one."""
    rows: list[list[str | int | float | Cell | None]] = []
    for label in dict.fromkeys(cell.label for cell in cells):
        best = _best(cells, label, "probing/selectivity")
        described = keepable(best.probe).descriptions or []
        for number, description in enumerate(described):
            words = " · ".join(short(word.word) for word in description.words[:5])
            balanced, selective = best.known.balanced_accuracy[number], best.known.selectivity[number]
            texts = best.known.n_texts[number]
            rows.append(
                [short(description.label), best.path, texts, float(balanced.mean()), float(selective.mean()), words]
            )
    columns = [
        Column("concept"),
        Column("best layer"),
        Column("texts", True, digits=0),
        Column("balanced accuracy", True, True),
        Column("selectivity", True, True),
        Column("words with the highest scores"),
    ]
    return Table(columns, rows, "Each concept at the layer that knows its label best.")


def _lead(cells: Sequence[ProbeCell]) -> str:
    """Say for each label where it is known best, and by how much more than by heart."""
    parts = []
    for label in dict.fromkeys(cell.label for cell in cells):
        best = _best(cells, label, "probing/selectivity")
        low, high = best.known.interval("selectivity")
        reached = best.metrics["probing/balanced_accuracy"]
        parts.append(
            f"{label!r} is known best at {best.path} ({best.probe.name}: balanced accuracy {reached:.3f}, selectivity "
            f"{best.metrics['probing/selectivity']:.3f}, {low:.3f} to {high:.3f})."
        )
    return " ".join(parts)


def _summary(job: Job, title: str, lead: str, cells: Sequence[ProbeCell]) -> str:
    heads = ["layer", "label", "method", *SHOWN]
    lines = [f"**{schema.markdown(title)}**", "", schema.markdown(lead), ""]
    lines += ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    for cell in cells:
        values = [cell.path, cell.label, cell.probe.name, *(f"{cell.metrics[name]:.3f}" for name in SHOWN.values())]
        lines.append("| " + " | ".join(schema.markdown(value) for value in values) + " |")
    where = f"The page is in the artifact `{schema.REPORT_HTML}`. All runs of this job carry the tag "
    lines += ["", f"{where}`{schema.TAG_SUITE}` = `{job.suite}`: group the runs table by it."]
    return "\n".join(lines)
