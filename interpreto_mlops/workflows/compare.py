"""Methods compared from Python: the same runs, report and paired tests as the command `attribute` makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

from interpreto_mlops.attributions import Attributor
from interpreto_mlops.attributions.comparison import Comparison
from interpreto_mlops.attributions.metrics import METRICS, Metric
from interpreto_mlops.errors import DataError, InputError, UnknownNameError
from interpreto_mlops.models.layer_targets import layer_targets
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.hiding import texts_are_hidden
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.tracking.store import Store, configured_store
from interpreto_mlops.workflows.attribute import AttributionCell, Plan, column_targets, compared, explain
from interpreto_mlops.workflows.cataloguing import catalogued, take_over
from interpreto_mlops.workflows.execute import Outcome
from interpreto_mlops.workflows.job import DEFAULT_STORE, Console, Job, new_suite
from interpreto_mlops.workflows.reports import report_run, write_report
from interpreto_mlops.workflows.together import build_methods, build_metrics, explain_together

_METHODS = ("occlusion", "integrated_gradients", "kernel_shap")
_LONGEST = 300
_METRICS = ("insertion", "deletion", "comprehensiveness", "sufficiency")


def compare_methods(
    model: TextModel | str,
    texts: Iterable[str] | TextDataset,
    methods: Sequence[str | Attributor] = _METHODS,
    metrics: str | Sequence[str | Metric] = _METRICS,
    *,
    targets: Any = None,
    contrast: Any = None,
    generation: Mapping[str, Any] | None = None,
    truncation: bool = False,
    granularity: str = "word",
    inference_mode: str = "logits",
    replacement: str | int = "auto",
    target_granularity: str = "token",
    seed: int = 0,
    n_random: int = 20,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    rationales: Sequence[Any] | None = None,
    log: bool = True,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    name: str = "texts",
    progress: bool | None = None,
) -> Comparison:
    """Compare attribution methods on the same texts: metrics with intervals, paired tests, costs.

    Methods and metrics share what they evaluate. One run for each method and a report run go to MLflow, and into the
    store's catalogue where it has one.

    Arguments:
        model: a `TextModel`, or where to load one: a folder, a hub id, or `models:/name@alias`.
        texts: the raw texts, or a `TextDataset`.
        methods: registry names, or methods that are built already.
        metrics: registry names, or metrics that are built already; `all` for every one that is neither costly nor needs
            more than the explanations.
        targets, contrast, generation, truncation: what is explained, as a method is called with it: concepts, too; by
            default the predicted class, or the model's own continuation.
        granularity, inference_mode, replacement, target_granularity: of methods given by name.
        seed: of methods and metrics given by name.
        n_random: random rankings of each text, of metrics given by name.
        options: further parameters by name, such as `{"kernel_shap": {"n_perturbations": 1000}}`.
        rationales: for the metric `plausibility`: for each text pairs (start, end) of characters.
        log: whether runs are written; without them nothing of MLflow's is touched.
        tracking_uri, experiment: where runs go. By default where `mlflow.start_run` would write, if the process has a
            tracking address; else the file `interpreto-runs/mlflow.db`.
        name: of the data set in the runs, for a list of texts.
        progress: True for a progress bar, False for none, None for one when the output is a terminal.

    Returns:
        A `Comparison` with `.table`, `.pairs`, `.results`, `.explanations`, `.report_run_id` and `.plot()`.

    Raises:
        UnknownNameError: a method, a metric or a parameter that is not known.
        InputError: texts, targets or parameters that cannot be used.
        TrackingError: the store fails.
    """
    dataset = _dataset(texts, name)
    store = configured_store(tracking_uri, experiment, default=DEFAULT_STORE) if log else None
    model = load_model(model, store=store) if isinstance(model, str) else model
    if not isinstance(model, TextModel):
        raise InputError(f"give a TextModel, or where one can be loaded from, not a {type(model).__name__}")
    common = {
        "granularity": granularity,
        "inference_mode": inference_mode,
        "replacement": replacement,
        "seed": seed,
        "target_granularity": target_granularity,
    }
    scoring = {"replacement": replacement, "n_random": n_random, "seed": seed}
    if metrics == "all":
        metrics = [name for name, kind in METRICS.items() if not kind.costly and not kind.needs]
    known, methods, metrics = dict(options or {}), _sequence(methods, "methods"), _sequence(metrics, "metrics")
    names = [each for each in (*methods, *metrics) if isinstance(each, str)]
    if unused := [name for name in known if name not in names]:
        raise UnknownNameError("method in options", unused[0], names)
    built = build_methods(model, methods, common, known)
    plan = Plan(
        built,
        build_metrics(built, metrics, scoring, known, rationales, layer_targets(targets)),
        {
            "targets": column_targets(dataset) if targets is None else targets,
            "contrast": contrast,
            "generation": generation,
            "truncation": truncation,
        },
    )
    if store is None:
        return _in_memory(plan, dataset, progress)
    return _logged(store, model, dataset, plan, progress)


def _dataset(texts: Iterable[str] | TextDataset, name: str) -> TextDataset:
    if isinstance(texts, str):
        raise InputError(f"give a list of texts, not one string ({texts[:40]!r})")
    dataset = texts if isinstance(texts, TextDataset) else TextDataset(name, tuple(texts))
    if wrong := [text for text in dataset.texts if not isinstance(text, str)]:
        raise InputError(f"a text must be a string, not {wrong[0]!r}")
    if not any(text.strip() for text in dataset.texts):
        raise DataError(f"all {len(dataset)} texts of {dataset.name!r} are empty")
    return dataset


def _sequence(given: Any, what: str) -> Sequence[Any]:
    if isinstance(given, str):
        raise InputError(f"give a list of {what}, not one string ({given!r})")
    return list(given)


def _in_memory(plan: Plan, dataset: TextDataset, progress: bool | None) -> Comparison:
    explained = explain_together(plan.methods, plan.metrics, dataset.texts, plan.call, progress=progress)
    return compared(
        [AttributionCell("", label, found.explanations, found.scores) for label, found in explained.items()]
    )


def _logged(store: Store, model: TextModel, dataset: TextDataset, plan: Plan, progress: bool | None) -> Comparison:
    console = Console(quiet=True, bars=progress)
    job = Job(store, model, dataset, new_suite("compare"), _command(plan), console)
    title = f"compare {model.name} on {dataset.name}"
    with catalogued(store, console) as keeper:
        with report_run(job, title) as log:
            cells = explain(job, plan)
            comparison = compared(cells)
            write_report(job, log, title, comparison)
        take_over(keeper, console, Outcome(store, job.suite, log.run_id, cells).runs)
    return dataclasses.replace(comparison, report_run_id=log.run_id)


def _command(plan: Plan) -> str:
    """Return the call as it could be typed, with every parameter."""
    lines = ["interpreto_mlops.compare_methods(", "    model,", "    texts,"]
    for name, given in (("methods", plan.methods.values()), ("metrics", next(iter(plan.metrics.values())))):
        lines += [f"    {name}=[", *(f"        {each!r}," for each in given), "    ],"]
    said = {name: value for name, value in plan.call.items() if value is not None and value is not False}
    lines += [f"    {name}={_short(value)}," for name, value in said.items()]
    return "\n".join([*lines, ")"])


def _short(value: Any) -> str:
    # Where texts are hidden, what is given text by text is theirs.
    listed = isinstance(value, Iterable) and not isinstance(value, str | Mapping) and getattr(value, "ndim", 1) != 0
    if texts_are_hidden() and listed:
        return f"[…]  # {len(value)} entries" if isinstance(value, Sized) else "[…]"
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
