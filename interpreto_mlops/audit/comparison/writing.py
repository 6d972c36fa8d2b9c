"""A comparison as a run of the kind `report`: one page, the same as JSON, and what was compared as a tag."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from interpreto_mlops.audit.comparison.results import EvidenceComparison
from interpreto_mlops.audit.comparison.subjects import Subject
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import redact
from interpreto_mlops.tracking.data import DataReference
from interpreto_mlops.tracking.runs import run
from interpreto_mlops.tracking.store import Store
from interpreto_mlops.visuals import evidence_html

_MOST_LABELS = 4
_REPORT = "report"


def write_comparison(
    store: Store, subjects: Sequence[Subject], comparison: EvidenceComparison, command: str | None = None
) -> EvidenceComparison:
    """Write the report run, into the experiment of the first subject's evidence, and return it with the run's id.

    Raises:
        TrackingError: the store fails; the run is then marked FAILED.
    """
    runs = [each for subject in subjects for each in subject.runs]
    if runs:
        store = dataclasses.replace(store, experiment_id=str(runs[0].info.experiment_id))
    with run(
        store,
        kind=_REPORT,
        name=title_of(subjects),
        tags={schema.TAG_COMPARED: " ".join(each.pinned for each in subjects), schema.TAG_COMMAND: command},
        params=schema.params({}, comparison.settings),
    ) as log:
        logged = dataclasses.replace(comparison, report_run_id=log.run_id)
        content = logged.to_dict()
        for data in _data(content["groups"]):
            log.input(data, "compared")
        for subject in subjects:
            if subject.model is not None and subject.model.model_id is not None:
                log.input_model(subject.model.model_id)
        page = evidence_html.render_page(content, title_of(subjects), redact(command or ""))
        log.text(schema.REPORT_COMPARE_HTML, page)
        log.dict(schema.REPORT_COMPARE_JSON, content)
        log.summary(_summary(content, subjects))
        log.write_environment()
    return logged


def title_of(subjects: Sequence[Subject]) -> str:
    """Return what a comparison is called."""
    names = [each.label for each in subjects[:_MOST_LABELS]]
    more = len(subjects) - len(names)
    return "compare " + " with ".join(names) + (f" and {more} more" if more else "")


def _data(groups: Sequence[Mapping[str, Any]]) -> list[DataReference]:
    """Return the data sets that were compared on."""
    known = {each["digest"]: each for each in groups if each["digest"] and each["data"]}
    return [DataReference(str(each["data"]), digest, rows=int(each["texts"])) for digest, each in known.items()]


def _summary(content: Mapping[str, Any], subjects: Sequence[Subject]) -> str:
    lines = [f"- **{schema.markdown(each.label)}**: {schema.markdown(each.pinned)}" for each in subjects]
    lead = schema.markdown(evidence_html.lead(content))
    where = (
        f"The page is the artifact `{schema.REPORT_COMPARE_HTML}`, the numbers are in `{schema.REPORT_COMPARE_JSON}`."
    )
    return "\n".join([lead, "", *lines, "", where])
