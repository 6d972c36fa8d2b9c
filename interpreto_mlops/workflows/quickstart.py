"""The main job on real text, from nothing: a corpus, a classifier, attributions, concepts, a report."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.hiding import hiding_texts, texts_are_hidden
from interpreto_mlops.text.library_docs import library_docs
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.tracking.resolving import find_registered
from interpreto_mlops.tracking.runs import run
from interpreto_mlops.tracking.store import Store, connect
from interpreto_mlops.tracking.text_models import log_text_model
from interpreto_mlops.workflows.attribute import compared, explain, planned
from interpreto_mlops.workflows.cataloguing import catalogued, check_log, take_over
from interpreto_mlops.workflows.classifier import train_classifier
from interpreto_mlops.workflows.concepts import learn
from interpreto_mlops.workflows.execute import Outcome, show
from interpreto_mlops.workflows.job import Console, Job, new_suite
from interpreto_mlops.workflows.recipes import AttributeRecipe, ConceptsRecipe
from interpreto_mlops.workflows.reports import report_run, write_report

MODEL_NAME = "library-docs"
FOLDER = "interpreto-quickstart"
EXPERIMENT = "interpreto-quickstart"

# The classifier reads the last layer at [CLS] alone, so concepts of words are learned at the two before it.
LAYERS = 3
CONCEPT_LAYERS = (0, 1)


@dataclass(frozen=True)
class Sizes:
    """How large the quickstart is.

    Arguments:
        train_per_label: training paragraphs of each library, for the classifier.
        epochs: of its training.
        explained: held-out paragraphs that attributions explain.
        fitted: training paragraphs whose activations dictionaries are fitted on.
        scored: held-out paragraphs that dictionaries are scored on.
        n_concepts: of the sparse autoencoder; PCA gets as many components as that one uses at a time.
        k: concepts that the sparse autoencoder uses at a time.
    """

    train_per_label: int = 10_000
    epochs: int = 5
    explained: int = 48
    fitted: int = 1500
    scored: int = 300
    n_concepts: int = 256
    k: int = 16


def quickstart(
    *,
    folder: str | Path = FOLDER,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    command: str = "interpreto-mlops quickstart",
    console: Console | None = None,
    sizes: Sizes | None = None,
    catalogue_uri: str | None = None,
    catalogue: bool = True,
    hide_texts: bool = False,
) -> Outcome:
    """Run the main job: train or find the classifier `library-docs`, explain it, learn its concepts, compare, register.

    Arguments:
        folder: of the embedded store, when neither `tracking_uri` nor `MLFLOW_TRACKING_URI` names another.
        tracking_uri: where runs go.
        experiment: its name.
        command: what repeats the job, for the record.
        console: where to report; by default nowhere.
        sizes: how large everything is.
        catalogue_uri, catalogue, hide_texts: as in a recipe.

    Raises:
        InterpretoError: whatever stops it; what had begun is then marked FAILED, and no dictionary is registered.
        CatalogueError: all is done, but the log does not tell of what was registered.
    """
    console, sizes = console or Console(quiet=True), sizes or Sizes()
    start = time.perf_counter()
    with console.stage("store"):
        default = f"sqlite:///{Path(folder).absolute() / 'mlflow.db'}"
        store = connect(tracking_uri, experiment or _own_experiment(), default=default)
    console.say(f"runs go to {store.shown}, experiment {store.experiment!r}")
    with hiding_texts(hide_texts), catalogued(store, console, catalogue_uri, wanted=catalogue) as keeper:
        outcome = _carry_out(store, command, console, sizes)
        take_over(keeper, console, outcome.runs)
    console.seconds["total"] = time.perf_counter() - start
    show(outcome, console)
    _show_times(console)
    check_log(keeper)
    return outcome


def _carry_out(store: Store, command: str, console: Console, sizes: Sizes) -> Outcome:
    with console.stage("corpus"):
        train, test = library_docs("train", max_per_label=sizes.train_per_label), library_docs("test")
    console.say(f"corpus: {len(train)} training and {len(test)} held-out paragraphs, {_labels(train)}")
    with console.stage("classifier"):
        model = _classifier(store, train, test, command, console, sizes)
    job = Job(store, model, test.head(sizes.explained), new_suite("quickstart"), command, console)
    title = f"quickstart: {model.name}"
    with report_run(job, title) as log:
        attribute, concepts = _recipes(job, sizes)
        outcome = Outcome(store, job.suite, log.run_id)
        with console.stage("attributions"):
            console.say(f"attributions of {len(job.dataset)} held-out paragraphs")
            outcome.attributions.extend(explain(job, planned(attribute, model, job.dataset)))
            outcome.comparison = compared(outcome.attributions)
        console.say(f"concepts at layers {CONCEPT_LAYERS[0]} and {CONCEPT_LAYERS[1]}, from {sizes.fitted} paragraphs")
        outcome.concepts.extend(learn(_scoring(job, test, sizes), concepts, train.head(sizes.fitted)))
        with console.stage("report"):
            write_report(job, log, title, outcome.comparison, outcome.concepts)
    return outcome


def _own_experiment() -> str | None:
    """Return the quickstart's experiment, or None where the environment (`mlflow run`) names another."""
    named = os.environ.get("MLFLOW_EXPERIMENT_ID") or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    return None if named else EXPERIMENT


def _labels(dataset: TextDataset) -> str:
    return f"{len(set(dataset.labels or ()))} libraries"


def _classifier(
    store: Store, train: TextDataset, test: TextDataset, command: str, console: Console, sizes: Sizes
) -> TextModel:
    """Find the classifier in the registry, or train, log and register it."""
    found = find_registered(store, MODEL_NAME)
    if found is not None:
        console.say(f"classifier: {found} is registered already")
        return load_model(found, store=store)
    console.say("classifier: training a small BERT …")
    with run(
        store,
        kind=None,
        name=f"train {MODEL_NAME}",
        tags={schema.TAG_COMMAND: command},
        params={"model": MODEL_NAME, "seed": 0, "method.epochs": sizes.epochs},
    ) as log:
        log.input(train, "training")
        log.input(test, "evaluation")
        trained = train_classifier(train, test, epochs=sizes.epochs, layers=LAYERS, progress=console.progress)
        for name in ("loss", "accuracy"):
            points = [(int(entry["epoch"]), entry[name]) for entry in trained.history]
            log.curve(f"{schema.TRAIN}/{name}", [step for step, _ in points], [value for _, value in points])
        logged = log_text_model(
            store,
            log,
            TextModel(trained.model, trained.tokenizer, name=MODEL_NAME),
            name=MODEL_NAME,
            registered_model_name=MODEL_NAME,
            description=f"Tells libraries by paragraphs of their docstrings; held-out accuracy {trained.accuracy:.3f}.",
        )
        log.metrics({"accuracy": trained.accuracy}, model_id=logged.model_id, dataset=test)
        log.summary(f"Trains `{MODEL_NAME}`: held-out accuracy **{trained.accuracy:.3f}** on {len(test)} paragraphs.")
        log.write_environment()
    console.say(f"classifier: held-out accuracy {trained.accuracy:.3f}, registered as {logged.uri}")
    return load_model(logged.uri, store=store)


def _recipes(job: Job, sizes: Sizes) -> tuple[AttributeRecipe, ConceptsRecipe]:
    """Return what is done as recipes, which every cell keeps its own part of."""
    where: dict[str, Any] = {
        "model": job.model.uri,
        "data": "library_docs",
        "tracking_uri": job.store.tracking_uri,
        "experiment": job.store.experiment,
        "hide_texts": texts_are_hidden(),
    }
    attribute = AttributeRecipe(**where, max_texts=sizes.explained)
    concepts = ConceptsRecipe(
        **where,
        max_texts=sizes.scored,
        fit_split="train",
        fit_max_texts=sizes.fitted,
        layers=list(CONCEPT_LAYERS),
        n_concepts=[sizes.n_concepts],
        # The same number of active concepts, so that the reconstructions of the two families can be compared.
        options={"pca": {"n_concepts": sizes.k}, "topk_sae": {"k": sizes.k}},
    )
    return attribute, concepts


def _scoring(job: Job, test: TextDataset, sizes: Sizes) -> Job:
    return Job(job.store, job.model, test.head(sizes.scored), job.suite, job.command, job.console)


def _show_times(console: Console) -> None:
    console.say()
    console.say("seconds: " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in console.seconds.items()))
