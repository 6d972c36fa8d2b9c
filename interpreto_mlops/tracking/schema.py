"""The run schema: every tag, parameter, metric and artifact name that a run may have, and how names are made safe.

The MLflow UI lines runs up by name, so nothing outside this module spells one.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from interpreto_mlops.errors import InputError, UnknownNameError

KINDS = ("attributions", "concepts", "probe", "simulatability", "audit", "report")
DICTIONARY_KIND = "concept_dictionary"

TAG_KIND = "interpreto.kind"
TAG_SUITE = "interpreto.suite"
TAG_VERSION = "interpreto.version"
TAG_CELL = "interpreto.cell"
TAG_MODEL_URI = "interpreto.model.uri"
TAG_MODEL_FINGERPRINT = "interpreto.model.fingerprint"
TAG_MODEL_ID = "interpreto.model.id"
TAG_LAYER = "interpreto.layer"
TAG_COMMAND = "interpreto.command"
TAG_METHOD = "interpreto.method"
TAG_DATA = "interpreto.data.digest"
TAG_SOURCE_RUN = "interpreto.source_run"
TAG_MANIFEST = "interpreto.manifest"
TAG_SHA256 = "interpreto.sha256"
TAG_METRIC = "interpreto.metric."
TAG_AUDIT_STATUS = "interpreto.audit.status"
TAG_AUDIT_RUN = "interpreto.audit.run"
TAG_AUDIT_PROMOTED = "interpreto.audit.promoted"
TAG_COMPARED = "interpreto.compared"
TAG_LABELS_OF = "interpreto.labels.of"
TAG_LABELS_BY = "interpreto.labels.by"
TAG_NOTE = "mlflow.note.content"
TAG_TABLES = "mlflow.loggedArtifacts"
TAG_VERSIONS = "mlflow.modelVersions"
TAG_EXPERIMENT_KIND = "mlflow.experimentKind"

TRACE_NAME = "mlflow.traceName"
TRACE_SCHEMA = "mlflow.trace_schema.version"
TRACE_RUN = "mlflow.sourceRun"
TRACE_USAGE = "mlflow.trace.tokenUsage"
TRACE_COST = "mlflow.trace.cost"
SPAN_TRACE = "mlflow.traceRequestId"
SPAN_TYPE = "mlflow.spanType"
SPAN_INPUTS = "mlflow.spanInputs"
SPAN_OUTPUTS = "mlflow.spanOutputs"
SPAN_MODEL = "mlflow.llm.model"
SPAN_USAGE = "mlflow.chat.tokenUsage"
SPAN_COST = "mlflow.llm.cost"
SPAN_ATTEMPTS = "interpreto.attempts"

PARAMS = (
    "model",
    "task",
    "method",
    "layer",
    "granularity",
    "aggregation",
    "inference_mode",
    "holdout",
    "fit_split",
    "n_concepts",
    "seed",
    "label",
    "folds",
    "repeats",
    "subject",
    "language_model",
    "against",
    "policy",
    "policy_sha256",
)
METHOD_PARAM = "method."
IMPORTANCE_PARAM = "method.importance"

FAITHFULNESS = "faithfulness"
EXPLAIN = "explain"
CURVE = "curve"
TRAIN = "train"
COST = "cost"
AUDIT = "audit"
RANDOM = "_random"
COSTS = ("seconds", "evaluations_asked", "evaluations_run", "tokens", "padding", "tokens_per_second")

ATTRIBUTIONS = "attributions"
ATTRIBUTIONS_FILES = ("attributions/attributions.json", "attributions/attributions.parquet")
ATTRIBUTIONS_HTML = "attributions/attributions.html"
ATTRIBUTIONS_EXAMPLES = "attributions/examples.json"
ATTRIBUTIONS_METRICS = "attributions/metrics.json"
ATTRIBUTIONS_SCORES = "attributions/scores.parquet"
ATTRIBUTIONS_CURVES = "attributions/curves.png"
ATTRIBUTIONS_EXAMPLE = "attributions/example.png"
ATTRIBUTIONS_MATRIX = "attributions/matrix.png"
CONCEPTS_LABELS = "concepts/labels.json"
CONCEPTS_HTML = "concepts/concepts.html"
CONCEPTS_IMPORTANCE = "concepts/importance.parquet"
CONCEPTS_IMPORTANCE_FIGURE = "concepts/importance.png"
CONCEPTS_DENSITY = "concepts/density.parquet"
CONCEPTS_DENSITY_FIGURE = "concepts/density.png"
CONCEPTS_TRAINING_FIGURE = "concepts/training.png"
INTERPRETATION_CHANGES = "interpretation/labels.json"
INTERPRETATION_SCORES = "interpretation/scores.parquet"
SIMULATABILITY_SETTINGS = "simulatability/settings.json"
SIMULATABILITY_ANSWERS = "simulatability/answers.parquet"
SIMULATABILITY_HTML = "simulatability/simulatability.html"
QUESTIONS_FOLDER = "questions"
PROBING_SCORES = "probing/scores.json"
MODEL_CARD = "README.md"
MODEL_LABELS = "labels.json"
MODEL_METRICS = "metrics.json"
REPORT_HTML = "report/report.html"
REPORT_COMPARISON = "report/comparison.png"
REPORT_CURVES = "report/curves.png"
REPORT_COST = "report/cost.png"
REPORT_PROBING = "report/probing.png"
REPORT_PROBES = "report/probes.json"
REPORT_METHODS = "report/methods.json"
REPORT_PAIRS = "report/pairs.json"
AUDIT_HTML = "report/audit.html"
AUDIT_JSON = "report/audit.json"
POLICY = "policy.yaml"
REPORT_COMPARE_HTML = "report/compare.html"
REPORT_COMPARE_JSON = "report/compare.json"
RECIPE = "recipe.yaml"
RUN_MANIFEST = "manifest.json"
ENVIRONMENT = "environment.json"

_MAX_SLUG = 120
_MAX_PARAM = 6000
_KEY = re.compile(r"[^A-Za-z0-9_\-. /]+")


def slugify(text: str) -> str:
    """Return the text as a name that all of MLflow takes: at most 120 ASCII letters, digits, `_` and `-`."""
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9_]+", "-", ascii_only).strip("-")
    return slug[:_MAX_SLUG].rstrip("-") or "unnamed"


def registered_name(model: str, layer: str, method: str) -> str:
    """Return the name by which dictionaries are registered: `<base>.<layer>.<method>`."""
    return ".".join(slugify(part) for part in (model, layer, method))


def key(text: str) -> str:
    """Return the text as a metric or parameter key: what MLflow refuses becomes `_`."""
    parts = (_KEY.sub("_", part).strip() for part in text.split("/"))
    return "/".join("_" if set(part) <= {"."} else part for part in parts)[:250]


def cell_hash(config: Mapping[str, Any]) -> str:
    """Return 32 hex digits of the sha256 of a cell's full configuration; the order of its keys does not matter.

    Raises:
        InputError: a value that JSON cannot hold, so that it has no fixed text.
    """
    try:
        text = json.dumps(config, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise InputError(f"the configuration of a cell must be plain JSON: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def check_kind(kind: str) -> str:
    """Return `kind` if it is one of `KINDS`.

    Raises:
        UnknownNameError: it is not.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of run", kind, KINDS)
    return kind


def metric_key(name: str) -> str:
    """Return the key of an attribution metric: a bare registry name is a faithfulness metric."""
    return key(name if "/" in name else f"{FAITHFULNESS}/{name}")


def explain_key(name: str) -> str:
    """Return the key of a summary metric on the explained model: `explain/` and the last part of its own key."""
    return f"{EXPLAIN}/{key(name).rsplit('/', 1)[-1]}"


def metric_of_part(name: str, part: str | None) -> str:
    """Return the key of a metric of one of several methods in a run: `<part>/<key>`; without a part as it is."""
    return name if part is None else key(f"{slugify(part)}/{name}")


def artifact_of_part(path: str, part: str | None) -> str:
    """Return the path of an artifact of one of several methods in a run: `attributions/<part>/…`."""
    folder, slash, name = path.partition("/")
    return path if part is None or not slash else f"{folder}/{slugify(part)}/{name}"


def params(fixed: Mapping[str, Any], method: Mapping[str, Any] | None = None) -> dict[str, str]:
    """Return a run's parameters as text, None left out: the schema's own by name, the method's others under `method.`.

    Raises:
        UnknownNameError: a name in `fixed` that the schema does not have.
    """
    values = dict(fixed)
    for name, value in (method or {}).items():
        if name in PARAMS:
            values.setdefault(name, value)
        else:
            values[key(METHOD_PARAM + name)] = value
    for name in fixed:
        if name not in PARAMS:
            raise UnknownNameError("run parameter", name, PARAMS)
    return {name: param_text(value) for name, value in values.items() if value is not None}


def param_of_kind(kind: str, name: str) -> str:
    """Return the name of a parameter of ours in a run of the user's that has one of the same name: `<kind>.<name>`."""
    return f"{kind}.{name}"


def param_text(value: Any) -> str:
    """Return a parameter as text, cut to what MLflow keeps with a visible mark where it is longer."""
    text = json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (dict, list, tuple)) else str(value)
    if len(text) <= _MAX_PARAM:
        return text
    mark = f" … (cut from {len(text)} characters)"
    return text[: _MAX_PARAM - len(mark)] + mark


def costs(counters: Mapping[str, float], seconds: float | None = None) -> dict[str, float]:
    """Return an engine's counters as `cost/…` metrics; `seconds` replaces the time inside the model."""
    found = {name: float(counters[name]) for name in COSTS if name in counters}
    if seconds is not None:
        found["seconds"] = seconds
    return {f"{COST}/{name}": value for name, value in found.items()}


def markdown(text: object) -> str:
    """Return text that comes from data or a user so that markdown and HTML show it as it is, on one line."""
    line = re.sub(r"\s+", " ", str(text))
    return re.sub(r"([\\`*_{}\[\]()#+!|<>~&])", r"\\\1", line)
