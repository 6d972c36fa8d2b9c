"""The evidence of a version: its finished runs whose seals hold, what they found, and why others do not count."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import yaml
from mlflow.entities import DatasetInput, Run

from interpreto_mlops.audit.policies.dictionaries import DictionaryFiles, dictionary_files
from interpreto_mlops.audit.policies.pieces import Metric, Piece, SetAside
from interpreto_mlops.errors import DataError, IntegrityError, TrackingError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import first_line
from interpreto_mlops.tracking.manifest import digest_of, parse_manifest
from interpreto_mlops.tracking.reading import (
    Explanations,
    fingerprint_of,
    kinds_of,
    read_explanations,
    runs_that_explain,
)
from interpreto_mlops.tracking.resolving import ResolvedModel
from interpreto_mlops.tracking.store import Store
from interpreto_mlops.tracking.verification import verify_evidence
from interpreto_mlops.visuals.metric_names import metric_name

KINDS = ("attributions", "concepts")
_CONTEXT = "mlflow.data.context"
_EXPLAINED, _LEARNED = "explained", ("fitted", "evaluated")
_CLOCKS = timedelta(hours=1)
_CLOSE = 1e-6
_READ = (*schema.ATTRIBUTIONS_FILES, schema.ATTRIBUTIONS_SCORES, schema.ATTRIBUTIONS_METRICS)
_FILES = {PurePosixPath(path).name for path in _READ}
_CONCEPTS = str(PurePosixPath(schema.CONCEPTS_LABELS).parent)

# What readers raise about files that somebody wrote anew.
_UNREADABLE = (
    *(DataError, OSError, ValueError, LookupError, TypeError, AttributeError),
    *(yaml.YAMLError, RecursionError, ArithmeticError),
)


@dataclass
class Evidence:
    """What there is to judge a version by.

    Arguments:
        store: where it is.
        model: the version.
        is_dictionary: whether the version is a dictionary rather than an explained model.
        now: the moment at which ages are counted.
        pieces: explanations of finished runs that are as they were logged, the oldest first.
        set_aside: other runs, and why they do not count.
        experiments: of each of these runs, by its id.
        hides_texts: whether verdicts must hold nothing of a text, such as a concept's label.
    """

    store: Store
    model: ResolvedModel
    is_dictionary: bool
    now: datetime
    pieces: list[Piece] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    experiments: dict[str, str] = field(default_factory=dict)
    hides_texts: bool = False
    _read: tuple[str, list[Explanations]] | None = field(default=None, repr=False)

    def explanations(self, piece: Piece) -> Explanations:
        """Return the attributions of a piece; those of one run at a time are held in memory."""
        if self._read is None or self._read[0] != piece.run_id:
            self._read = (piece.run_id, read_explanations(self.store, piece.run_id))
        for each in self._read[1]:
            if (each.label, each.explanations.method) == (piece.label, piece.method):
                return each
        raise DataError(f"the attributions by {piece.label!r} of the run {piece.run_id!r} are gone meanwhile")


def gather(store: Store, model: ResolvedModel, tags: Mapping[str, str], now: datetime | None = None) -> Evidence:
    """Look for all evidence of a version.

    Of an explained model these are the runs of any experiment that name it; of a dictionary the run that made it. Only
    finished runs count that are sealed, are as they were sealed, and explain this very content.

    Arguments:
        store: where it is.
        model: the version.
        tags: of the version.
        now: the moment at which ages are counted; by default the clock's.

    Raises:
        TrackingError: the store fails.
    """
    is_dictionary = tags.get(schema.TAG_KIND) == schema.DICTIONARY_KIND
    found = Evidence(store, model, is_dictionary, now or datetime.now(timezone.utc))
    runs = _maker(store, model) if is_dictionary else runs_that_explain(store, model, KINDS)
    fingerprint = None if is_dictionary else fingerprint_of(store, model)
    for run in runs:
        found.experiments[str(run.info.run_id)] = str(run.info.experiment_id)
        aside = _no_evidence(run, model, fingerprint, is_dictionary, found.now)
        if aside is None:
            _take(found, run)
        else:
            found.set_aside.append(aside)
    return found


def _maker(store: Store, model: ResolvedModel) -> list[Run]:
    run_id = model.run_id
    if run_id is None:
        return []
    run = store.if_there(f"read the run {run_id!r}", lambda: store.client.get_run(run_id))
    return [] if run is None or run.info.lifecycle_stage == "deleted" else [run]


def _no_evidence(
    run: Run, model: ResolvedModel, fingerprint: str | None, is_dictionary: bool, now: datetime
) -> SetAside | None:
    """Return why a run is no evidence whatever it holds, or None."""
    run_id, tags = str(run.info.run_id), run.data.tags
    if run.info.status != "FINISHED" or not run.info.end_time:
        return SetAside(run_id, f"it is {run.info.status}, and only finished runs count")
    for what, moment in (("begins", run.info.start_time), ("ends", run.info.end_time)):
        if (when := _ahead(moment, now)) is not None:
            # A finished run that is not over was changed, and may have held what is looked for.
            return SetAside(run_id, f"it {what} {when}, which is in the future", unsealed=True)
    if is_dictionary:
        return None
    own, model_id = tags.get(schema.TAG_MODEL_FINGERPRINT), tags.get(schema.TAG_MODEL_ID)
    if own and fingerprint and own != fingerprint:
        shas = f"sha256 {own[:12]!r}, not {fingerprint[:12]!r}"
        return SetAside(run_id, f"it explains another content, or the same in another dtype: {shas}")
    if not (own and fingerprint) and model_id and model.model_id and model_id != model.model_id:
        return SetAside(run_id, f"it explains the logged model {model_id!r}, not {model.model_id!r}")
    return None


def _ahead(milliseconds: int, now: datetime) -> str | None:
    """Return a moment in words where it is in the future, also one that no calendar has."""
    try:
        moment = _moment(milliseconds)
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms after 1970"
    return f"at {moment.isoformat()}" if moment > now + _CLOCKS else None


def _take(found: Evidence, run: Run) -> None:
    run_id = str(run.info.run_id)
    checked = verify_evidence(found.store, f"runs:/{run_id}")
    if checked.verdict != "intact":
        why = "; ".join(finding.detail for finding in checked.findings)
        broken = checked.verdict == "broken"
        found.set_aside.append(SetAside(run_id, why, broken=broken, unsealed=not broken))
        return
    try:
        # A search leaves out which models a run made.
        with found.store.guarded(f"read the run {run_id!r}"):
            whole = found.store.client.get_run(run_id)
        pieces = list(_pieces(found, whole, _sealed(found.store, whole)))
        found.pieces += pieces
        if not pieces:
            found.set_aside.append(SetAside(run_id, "it holds no explanation"))
    except TrackingError:
        # It is an OSError, too, and says nothing of the run.
        raise
    except (IntegrityError, _ContradictionError) as error:
        found.set_aside.append(SetAside(run_id, str(error), broken=True))
    except _UNREADABLE as error:
        found.set_aside.append(SetAside(run_id, f"what it holds cannot be read: {first_line(error)}", unsealed=True))


class _ContradictionError(Exception):
    """What a run says is not what its sealed files say."""


def _sealed(store: Store, run: Run) -> dict[str, str]:
    manifest = parse_manifest(read_file(store, str(run.info.run_id), schema.RUN_MANIFEST), f"runs:/{run.info.run_id}")
    if digest_of(manifest) != run.data.tags.get(schema.TAG_SHA256):
        raise IntegrityError("its manifest was changed while it was read")
    return manifest


def read_file(store: Store, run_id: str, path: str) -> str:
    """Return a text file among a run's artifacts.

    Raises:
        TrackingError: the store fails, or has no such file.
    """
    with (
        tempfile.TemporaryDirectory(prefix="interpreto-") as scratch,
        store.guarded(f"fetch {path!r} of the run {run_id!r}"),
    ):
        return Path(store.client.download_artifacts(run_id, path, scratch)).read_text(encoding="utf-8")


def _pieces(found: Evidence, run: Run, manifest: Mapping[str, str]) -> Iterator[Piece]:
    kinds = kinds_of(run)
    if "attributions" in kinds:
        yield from _attributions(found.store, run, manifest)
    if "concepts" in kinds:
        own = found.model.model_id if found.is_dictionary else None
        yield from _dictionaries(found.store, run, manifest, own)


def _attributions(store: Store, run: Run, manifest: Mapping[str, str]) -> Iterator[Piece]:
    run_id = str(run.info.run_id)
    there = {path for path in _listed(store, run, schema.ATTRIBUTIONS) if PurePosixPath(path).name in _FILES}
    _check_sealed(there, manifest)
    for place, each in enumerate(read_explanations(store, run_id)):
        # Rules are about what the model puts out; what drives a concept is no evidence of that.
        if each.explanations.layer is not None:
            continue
        part = None if place == 0 and schema.ATTRIBUTIONS_FILES[0] in there else each.label
        details_at = schema.artifact_of_part(schema.ATTRIBUTIONS_METRICS, part)
        details = json.loads(read_file(store, run_id, details_at)) if details_at in there else {}
        scores = _of_texts(each)
        metrics = {schema.metric_key(name): _metric(entry, name, scores) for name, entry in details.items()}
        _agree(run, {schema.metric_of_part(key, part): metric for key, metric in metrics.items()})
        yield Piece(
            run_id,
            "attributions",
            each.explanations.method,
            each.label,
            _moment(run.info.start_time),
            _digests(run, _EXPLAINED),
            len({item.text_sha256 for item in each.explanations if np.isfinite(item.scores).any()}),
            metrics,
            each.explanations.parameters,
            run.data.tags[schema.TAG_SHA256],
            frozenset(manifest),
            scores=scores,
            part=part,
            inputs=_digests(run),
        )


def _of_texts(each: Explanations) -> pd.DataFrame:
    """Return the scores with the sha256 of the text that each is of: a metric's rows come in the order of the texts."""
    texts = [item.text_sha256 for item in each.explanations]
    places = each.scores.groupby("metric", sort=False).cumcount()
    return each.scores.assign(text=[texts[place] for place in places])


def _metric(entry: Mapping[str, Any], name: str, scores: pd.DataFrame) -> Metric:
    value, random = entry["mean"], entry["random_mean"]
    judged = scores[(scores["metric"] == name) & np.isfinite(scores["value"].astype(float))]
    return Metric(
        math.nan if value is None else float(value),
        math.nan if random is None else float(random),
        bool(entry["higher_is_better"]),
        dict(entry.get("parameters") or {}),
        int(judged["text"].nunique()),
    )


def _dictionaries(store: Store, run: Run, manifest: Mapping[str, str], own: str | None) -> Iterator[Piece]:
    _check_sealed(set(_listed(store, run, _CONCEPTS)) & {schema.CONCEPTS_LABELS, schema.CONCEPTS_IMPORTANCE}, manifest)
    outputs = run.outputs.model_outputs if run.outputs else []
    ids = [str(output.model_id) for output in outputs if own is None or output.model_id == own]
    read = [files for model_id in ids if (files := dictionary_files(store, model_id)) is not None]
    if not read:
        raise IntegrityError("the dictionary that it made is gone")
    for files in read:
        metrics = {name: _of_dictionary(name, files) for name in files.metrics if not name.endswith(schema.RANDOM)}
        _agree(run, metrics)
        facts = files.facts
        yield Piece(
            str(run.info.run_id),
            "concepts",
            str(facts["method"]),
            str(facts["method"]),
            _moment(run.info.start_time),
            tuple(dict.fromkeys([*_digests(run, *_LEARNED), *filter(None, [facts.get("data_digest")])])),
            _rows(run),
            metrics,
            {"granularity": facts.get("granularity"), "seed": run.data.params.get("seed")},
            run.data.tags[schema.TAG_SHA256],
            frozenset(manifest),
            None if facts.get("layer") is None else str(facts["layer"]),
            int(facts["n_concepts"]),
            inputs=_digests(run),
        )


def _of_dictionary(name: str, files: DictionaryFiles) -> Metric:
    return Metric(files.metrics[name], files.metrics.get(name + schema.RANDOM), metric_name(name).higher_is_better)


def _agree(run: Run, metrics: Mapping[str, Metric]) -> None:
    """Compare what the run's own metrics say, which anybody may log anew, with what its sealed files say."""
    for name, metric in metrics.items():
        for key, sealed in ((name, metric.value), (name + schema.RANDOM, metric.random)):
            said = run.data.metrics.get(key)
            if said is None or sealed is None:
                continue
            if not (math.isclose(said, sealed, rel_tol=_CLOSE, abs_tol=1e-12) or (said != said and sealed != sealed)):
                raise _ContradictionError(f"its metric {key!r} is {said:.6g}, and its sealed files say {sealed:.6g}")


def _check_sealed(paths: set[str], manifest: Mapping[str, str]) -> None:
    """Refuse a file that was put beside those that were sealed: it would be read like one of them."""
    if loose := sorted(paths - manifest.keys()):
        raise IntegrityError(f"the file {loose[0]!r} was added since the run was sealed")


def _listed(store: Store, run: Run, folder: str) -> list[str]:
    """Return the files of a folder of a run's artifacts, and of the folders in it."""
    run_id = str(run.info.run_id)
    with store.guarded(f"list the artifacts of the run {run_id!r}"):
        top = store.client.list_artifacts(run_id, folder)
        below = [file for each in top if each.is_dir for file in store.client.list_artifacts(run_id, each.path)]
    return [str(each.path) for each in (*top, *below) if not each.is_dir]


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, tz=timezone.utc)


def _digests(run: Run, *contexts: str) -> tuple[str, ...]:
    """Return the digests of a run's data sets in these contexts; of all without any."""
    return tuple(dict.fromkeys(str(each.dataset.digest) for each in _inputs(run, *contexts)))


def _rows(run: Run) -> int:
    """Return how many texts the data sets of a dictionary say they have, the most of them."""
    sizes = [json.loads(each.dataset.profile or "{}").get("num_rows") or 0 for each in _inputs(run, *_LEARNED)]
    return max((int(size) for size in sizes), default=0)


def _inputs(run: Run, *contexts: str) -> list[DatasetInput]:
    given = run.inputs.dataset_inputs if run.inputs else []
    return [
        each
        for each in given
        if not contexts or any(tag.key == _CONTEXT and tag.value in contexts for tag in each.tags)
    ]
