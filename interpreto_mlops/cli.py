"""The command line: thin commands over the workflows."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from interpreto_mlops import __version__
from interpreto_mlops.errors import InterpretoError

if TYPE_CHECKING:
    from interpreto_mlops.audit.catalogue import Catalogue, LogEntry
    from interpreto_mlops.tracking.store import Store
    from interpreto_mlops.workflows.job import Console


class _List(click.ParamType):  # type: ignore[type-arg]
    """Values with commas between them."""

    name = "LIST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        return value if isinstance(value, list) else [part.strip() for part in str(value).split(",") if part.strip()]


_LIST = _List()


@contextmanager
def _said_plainly() -> Iterator[None]:
    """Turn what a user can cause into one sentence and exit code 1."""
    try:
        yield
    except InterpretoError as error:
        raise click.ClickException(str(error)) from error


def _console(quiet: bool) -> Console:
    """Silence the libraries beneath, which report their own progress, and say warnings in one line."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    from interpreto_mlops.workflows.job import Console

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.showwarning = _one_line
    return Console(quiet=quiet, write=click.echo)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"warning: {message}", err=True)


def _command() -> str:
    return shlex.join(["interpreto-mlops", *sys.argv[1:]])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="interpreto-mlops")
def main() -> None:
    """Explain HuggingFace text models and keep every explanation as MLflow evidence."""
    # Before torch is loaded: on a machine that is busy with other work, threads that wait by spinning make every small
    # matrix product wait for a turn (eight times slower was seen on two shared cores).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


_QUIET = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
_TRACKING = click.option(
    "--tracking-uri",
    help="A server's address or sqlite:///path [default: MLFLOW_TRACKING_URI, else a local file].",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_EXPERIMENT = click.option("--experiment", help="The MLflow experiment; created where it is missing.")


_OPTION = click.option(
    "--option",
    "settings",
    multiple=True,
    metavar="METHOD.NAME=VALUE",
    help="A method's or metric's own parameter, a value as in YAML; can be given again.",
)


def _source_options(command: Any) -> Any:
    """The options that `attribute` and `concepts` share: which model, which texts."""
    for option in reversed(
        [
            click.option("--model", required=True, help="A hub id, a folder, or models:/name@alias, models:/name/3."),
            click.option("--data", required=True, help="A CSV, TSV, JSONL or Parquet file, or a data set's name."),
            click.option("--text-column", default="text", show_default=True, help="The column of the texts."),
            click.option("--label-column", help="The column of the labels, if there is one."),
            click.option("--split", default="test", show_default=True, help="Which part of a named data set."),
            click.option("--max-texts", type=int, help="At most so many texts, from the start [default: all]."),
            click.option("--dtype", help="Of the model's weights: float32, bfloat16, … [default: the checkpoint's]."),
            _TRACKING,
            _EXPERIMENT,
            _QUIET,
        ]
    ):
        command = option(command)
    return command


@main.command()
@click.option("--folder", default="interpreto-quickstart", show_default=True, help="Of the embedded store.")
@_TRACKING
@_EXPERIMENT
@_QUIET
def quickstart(folder: str, tracking_uri: str | None, experiment: str | None, quiet: bool) -> None:
    """Run the main job on real text: train, explain, learn concepts, compare, register.

    Example: interpreto-mlops quickstart
    """
    with _said_plainly():
        console = _console(quiet)
        from interpreto_mlops.workflows.quickstart import quickstart as run_quickstart

        run_quickstart(
            folder=folder, tracking_uri=tracking_uri, experiment=experiment, command=_command(), console=console
        )


@main.command()
@_source_options
@click.option(
    "--methods",
    type=_LIST,
    default="occlusion,integrated_gradients,kernel_shap",
    show_default=True,
    help="Attribution methods (`interpreto-mlops methods` lists them).",
)
@click.option(
    "--metrics",
    type=_LIST,
    default="insertion,deletion,comprehensiveness,sufficiency",
    show_default=True,
    help="Metrics of their faithfulness.",
)
@click.option(
    "--granularity", default="word", show_default=True, help="word, token, sentence, 2-grams, … or all_tokens."
)
@click.option("--inference-mode", default="logits", show_default=True, help="logits, softmax or log_softmax.")
@click.option("--replacement", default="auto", show_default=True, help="auto, mask, pad, unk or remove.")
@click.option("--target", help="The class to explain, by name, or a continuation [default: what the model says].")
@click.option("--target-column", help="The column that says for each text what --target says for all.")
@click.option("--contrast", help="A class, or a token, against which the target is explained.")
@click.option(
    "--generate",
    "generation",
    multiple=True,
    metavar="KEY=VALUE",
    help="An argument of a language model's own generation, such as max_new_tokens=20; can be given again.",
)
@click.option(
    "--target-granularity",
    default="token",
    show_default=True,
    help="What of a continuation is explained as one: token, word or sentence.",
)
@click.option("--truncation", is_flag=True, help="Cut a prompt that is too long on the left instead of refusing it.")
@click.option("--autocast", help="bfloat16 or float16: run in half precision what torch's autocast does.")
@click.option("--compile", is_flag=True, help="Run scores through torch.compile, which pays for long jobs.")
@_OPTION
@click.option("--seed", type=int, default=0, show_default=True, help="Of methods and random rankings.")
@click.option("--n-random", type=int, default=20, show_default=True, help="Random rankings of each text.")
def attribute(quiet: bool, settings: tuple[str, ...], generation: tuple[str, ...], **values: Any) -> None:
    """Explain texts by attributions, score how faithful they are, and compare the methods.

    Example: interpreto-mlops attribute --model ./reviews --data reviews.csv --text-column text
    """
    _execute({"kind": "attribute", **values}, quiet, settings, generation)


@main.command()
@_source_options
@click.option(
    "--layers",
    type=_LIST,
    required=True,
    help="Layer numbers (negative ones from the end), 1.attention, 1.mlp, head (what the head reads) or module paths.",
)
@click.option(
    "--methods",
    type=_LIST,
    default="pca,topk_sae",
    show_default=True,
    help="Dictionary families (`interpreto-mlops methods` lists them).",
)
@click.option("--n-concepts", type=_LIST, default="64", show_default=True, help="Sizes; every one is fitted.")
@click.option("--seeds", type=int, default=2, show_default=True, help="Fits of each size; two give a stability.")
@click.option(
    "--granularity", default="token", show_default=True, help="What a row is: token, word, sentence, sample, cls, …"
)
@click.option(
    "--aggregation", default="mean", show_default=True, help="How a row's tokens become one: mean, max, sum, first, …"
)
@click.option("--activation-dtype", default="float32", show_default=True, help="Of the activations on disk.")
@click.option("--autocast", help="bfloat16 or float16: run the model in half precision.")
@click.option(
    "--importance",
    default="gradient_x_activation",
    show_default=True,
    help="How concepts are weighed (`interpreto-mlops methods` lists the ways).",
)
@click.option("--target", help="What importance explains: a class, or a continuation [default: what the model says].")
@click.option("--contrast", help="A class, or a token, against which the target is explained.")
@click.option(
    "--generate",
    "generation",
    multiple=True,
    metavar="KEY=VALUE",
    help="An argument of a language model's own generation, such as max_new_tokens=20; can be given again.",
)
@click.option(
    "--effect-texts", type=int, default=200, show_default=True, help="Texts on which the layer is replaced; 0 for none."
)
@click.option(
    "--workspace",
    help="A folder for activations, checkpoints and dictionaries, from which a job that was killed goes on.",
)
@click.option("--holdout", type=float, default=0.2, show_default=True, help="Share of the texts to score on.")
@click.option("--select-by", default="reconstruction/r2", show_default=True, help="The metric that chooses the best.")
@click.option("--register-best/--no-register", default=True, help="Register the best dictionary of each layer.")
@_OPTION
def concepts(quiet: bool, settings: tuple[str, ...], generation: tuple[str, ...], **values: Any) -> None:
    """Learn concept dictionaries of layers; score, label and register them.

    Example: interpreto-mlops concepts --model ./reviews --data reviews.csv --layers 0,1 --n-concepts 64
    """
    values["layers"] = [int(layer) if re.fullmatch(r"-?[0-9]+", layer) else layer for layer in values["layers"]]
    _execute({"kind": "concepts", **values}, quiet, settings, generation)


@main.command()
@click.argument("recipe")
@_QUIET
def run(recipe: str, quiet: bool) -> None:
    """Carry out a RECIPE, such as the recipe.yaml of a run.

    Example: interpreto-mlops run recipes/attribute.yaml
    """
    with _said_plainly():
        console = _console(quiet)
        from interpreto_mlops.workflows.execute import execute
        from interpreto_mlops.workflows.recipes import load_recipe

        execute(load_recipe(recipe), command=_command(), console=console)


def _execute(values: dict[str, Any], quiet: bool, settings: tuple[str, ...], generation: tuple[str, ...] = ()) -> None:
    with _said_plainly():
        console = _console(quiet)
        from interpreto_mlops.workflows.execute import execute
        from interpreto_mlops.workflows.recipes import parse_options, parse_recipe, parse_settings

        given = {key: value for key, value in values.items() if value is not None}
        given["options"] = parse_options(settings)
        if generation:
            given["generate"] = parse_settings(generation)
        execute(parse_recipe(given), command=_command(), console=console)


@main.command()
@click.argument("uri")
@_TRACKING
@_JSON
def lineage(uri: str, tracking_uri: str | None, as_json: bool) -> None:
    """Show what the model, dictionary or run at URI comes from, and what was made of it.

    Example: interpreto-mlops lineage models:/reviews@champion
    """
    with _said_plainly():
        _console(quiet=False)
        from interpreto_mlops.tracking.lineage import lineage as find

        tree = find(_existing_store(tracking_uri), uri)
        click.echo(json.dumps(tree.to_dict(), indent=1, ensure_ascii=False) if as_json else "\n".join(tree.lines()))


@main.command()
@click.argument("uri")
@_TRACKING
@_JSON
def verify(uri: str, tracking_uri: str | None, as_json: bool) -> None:
    """Compare the evidence at URI, a model, dictionary or run, with the sha256 that were kept when it was logged.

    The exit code is 0 where all is as it was, 1 where something was changed or is gone, 2 where it cannot be told.

    Example: interpreto-mlops verify models:/reviews/3
    """
    with _said_plainly():
        _console(quiet=False)
        from interpreto_mlops.tracking.verification import verify_evidence

        found = verify_evidence(_existing_store(tracking_uri), uri)
        if as_json:
            click.echo(json.dumps(found.to_dict(), indent=1, ensure_ascii=False))
        else:
            for finding in found.findings:
                click.echo(f"{finding.verdict}: {finding.subject}: {finding.detail}")
            click.echo(f"{found.pinned} is {found.verdict}: {found.n_files} files compared")
        sys.exit({"intact": 0, "broken": 1, "undecided": 2}[found.verdict])


_CATALOGUE = click.option(
    "--catalogue-uri",
    help="sqlite:///path or postgresql://… [default: INTERPRETO_CATALOGUE_URI, else beside the store].",
)


@main.group()
def catalogue() -> None:
    """Keep what MLflow cannot answer in a database beside it, with a log of who did what.

    Example: interpreto-mlops catalogue rebuild
    """


@catalogue.command()
@_TRACKING
@_CATALOGUE
@click.option("--hide-texts", is_flag=True, help="Keep hashes in the place of texts and words, from now on.")
def rebuild(tracking_uri: str | None, catalogue_uri: str | None, hide_texts: bool) -> None:
    """Derive everything but the log from MLflow's runs, models and artifacts.

    Example: interpreto-mlops catalogue rebuild --tracking-uri http://127.0.0.1:5000
    """
    with _said_plainly():
        _console(quiet=False)
        store = _existing_store(tracking_uri)
        with _catalogue(catalogue_uri, store, hide_texts=hide_texts or None) as book:
            found = book.rebuild(store)
            for what, why in found.skipped.items():
                click.echo(f"skipped {what}: {why}")
            held = f"{found.runs} runs, {found.dictionaries} dictionaries, {found.versions} versions"
            click.echo(f"{book.shown} holds {held}; {found.removed} rows of what is gone were removed")


@catalogue.command()
@_TRACKING
@_CATALOGUE
@click.option("--verify", "verified", is_flag=True, help="Check the chain of hashes; exit code 1 where it is broken.")
@click.option("--last", type=click.IntRange(min=1), help="At most so many entries, the newest [default: all].")
@_JSON
def log(tracking_uri: str | None, catalogue_uri: str | None, verified: bool, last: int | None, as_json: bool) -> None:
    """Show the log: who registered, audited, promoted and moved what.

    Example: interpreto-mlops catalogue log --verify
    """
    with _said_plainly():
        _console(quiet=False)
        with _catalogue(catalogue_uri, _store_if_there(tracking_uri)) as book:
            if verified:
                verdict = book.verify_log()
                click.echo(json.dumps(vars(verdict), ensure_ascii=False) if as_json else verdict.message)
                if not as_json and verdict.ok:
                    click.echo(f"head: {verdict.head}")
                sys.exit(0 if verdict.ok else 1)
            for entry in book.entries(last=last):
                click.echo(json.dumps(vars(entry), ensure_ascii=False) if as_json else _log_line(entry))


def _log_line(entry: LogEntry) -> str:
    change = " -> ".join(json.dumps(value, ensure_ascii=False) for value in (entry.before, entry.after))
    return f"{entry.sequence} {entry.at} {entry.actor} {entry.action} {entry.object}: {change}"


@main.command()
@click.argument("question", required=False)
@click.argument("parameters", nargs=-1, metavar="[NAME=VALUE]...")
@_TRACKING
@_CATALOGUE
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
    help="Of the answer.",
)
def query(
    question: str | None, parameters: tuple[str, ...], tracking_uri: str | None, catalogue_uri: str | None, form: str
) -> None:
    """Ask the catalogue a named QUESTION; without one, list them with their parameters.

    Example: interpreto-mlops query texts_with_word word=plot version=models:/library-docs/1 k=3
    """
    with _said_plainly():
        _console(quiet=False)
        from interpreto_mlops.workflows.recipes import parse_pairs

        if question is None:
            _list_questions()
            return
        given = parse_pairs(parameters)
        with _catalogue(catalogue_uri, _store_if_there(tracking_uri)) as book:
            answer = book.ask(question, **given)
        if form == "json":
            click.echo(answer.to_json(orient="records", force_ascii=False, indent=1))
        elif form == "csv":
            click.echo(answer.to_csv(index=False), nl=False)
        else:
            click.echo(answer.to_string(index=False) if len(answer) else "nothing")


def _list_questions() -> None:
    from interpreto_mlops.audit.catalogue import QUESTIONS, parameters

    for name in QUESTIONS.names():
        about = (QUESTIONS.get(name).__doc__ or "").strip().split("\n")[0]
        needs = " ".join(
            each.name + "=…" if each.required else f"[{each.name}={each.default}]" for each in parameters(name)
        )
        click.echo(f"{name} {needs}\n  {about}")


def _catalogue(uri: str | None, store: Store | None, hide_texts: bool | None = None) -> Catalogue:
    from interpreto_mlops.audit.catalogue import Catalogue

    return Catalogue.connect(uri, store=store, hide_texts=hide_texts)


def _store_if_there(tracking_uri: str | None) -> Store | None:
    """Return the store that the catalogue's default address depends on; the catalogue itself needs none."""
    from interpreto_mlops.errors import TrackingError

    try:
        return _existing_store(tracking_uri)
    except TrackingError:
        if tracking_uri is not None:
            raise
        return None


def _existing_store(tracking_uri: str | None) -> Store:
    from interpreto_mlops.tracking.store import existing_store
    from interpreto_mlops.workflows.job import DEFAULT_STORE

    return existing_store(tracking_uri, default=DEFAULT_STORE)


@main.command()
def methods() -> None:
    """List methods, metrics, dictionaries and data sets by the names that commands and recipes take.

    Example: interpreto-mlops methods
    """
    with _said_plainly():
        from interpreto_mlops.attributions import METHODS
        from interpreto_mlops.attributions.metrics import METRICS
        from interpreto_mlops.concepts import DICTIONARIES, IMPORTANCE
        from interpreto_mlops.concepts import METRICS as CONCEPT_METRICS
        from interpreto_mlops.text.datasets import DATASETS

        for title, registry in (
            ("attribution methods", METHODS),
            ("attribution metrics", METRICS),
            ("concept dictionaries", DICTIONARIES),
            ("concept importance", IMPORTANCE),
            ("concept metrics", CONCEPT_METRICS),
            ("data sets", DATASETS),
        ):
            click.echo(f"{title}:")
            for name in registry.names():
                item: Any = registry.get(name)
                about = getattr(item, "description", None) or (item.__doc__ or "").strip().split("\n")[0]
                click.echo(f"  {name:28} {about}")


@main.command()
def doctor() -> None:
    """Check that the installed packages fit together.

    Example: interpreto-mlops doctor
    """
    with _said_plainly():
        from interpreto_mlops.models.environment import report

        for line in report():
            click.echo(line)
