"""What a job is asked to do: typed, unknown keys refused, written beside every run as `recipe.yaml`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, TypeAdapter, ValidationError

from interpreto_mlops.attributions import METHODS
from interpreto_mlops.attributions.metrics import METRICS
from interpreto_mlops.concepts import DICTIONARIES, IMPORTANCE, PROBES
from interpreto_mlops.concepts import METRICS as CONCEPT_METRICS
from interpreto_mlops.concepts.metrics.evaluation import OF_ROWS
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.registry import check_options as check_options
from interpreto_mlops.registry import parameters_of as parameters_of
from interpreto_mlops.text.datasets import DATASETS
from interpreto_mlops.workflows.meaning_recipes import ConsimRecipe, LabelRecipe
from interpreto_mlops.workflows.recipe_base import ModelRecipe, Names, Positive

NAMED_COLUMN = "label"
"""What the labels of a named data set are called."""


class AttributeRecipe(ModelRecipe):
    """Explain texts by attributions and score the explanations.

    Arguments:
        model: a hub id, a folder, or an MLflow address (`models:/name@alias`).
        data: a file (CSV, TSV, JSONL, Parquet) or the name of a data set (`library_docs`).
        text_column, label_column: of a file.
        split: of a named data set.
        max_texts: at most so many texts, from the start.
        tracking_uri, experiment: where the runs go.
        catalogue_uri: the catalogue's address, or `none`; by default `INTERPRETO_CATALOGUE_URI`, else the file
            `catalogue.db` beside a SQLite store, else none.
        catalogue: whether runs and registrations are written into it.
        hide_texts: whether hashes are kept in the place of texts, words and labels, in MLflow and in the catalogue
            alike; `INTERPRETO_HIDE_TEXTS=1` asks for the same.
        dtype: of the model's weights: `float32`, `bfloat16`, `float16` or `float64`; by default the checkpoint's.
        autocast: `bfloat16` or `float16` for what torch's autocast runs in half precision.
        compile: whether scores run through `torch.compile`, which pays for long jobs.
        methods, metrics: by registry name.
        granularity, inference_mode, replacement: of every method.
        target: what is explained in every text: a class of a classifier (the predicted one by default), or the
            continuation for a language model (its own by default).
        target_column: of the file; says for each text what `target` says for all.
        contrast: what the target is explained against: why this class rather than that one.
        dictionary: the MLflow address or folder of a concept dictionary of the model; what is explained is then how
            strong its concepts get in each text.
        concepts: the numbers of these concepts.
        concept_aggregation: how a text's rows become one number: `max`, `mean` or `sum`.
        generate: arguments of a language model's own generation, such as `{max_new_tokens: 20}`.
        target_granularity: what of a continuation is explained as one: each `token`, `word` or `sentence` of it.
        truncation: whether a prompt that is too long is cut on the left instead of refused.
        seed: of every method and of the random rankings.
        n_random: random rankings of each text beside every metric.
        options: further parameters by method or metric, such as `{kernel_shap: {n_perturbations: 1000}}`.
    """

    kind: Literal["attribute"] = "attribute"
    methods: Names = Field(default=["occlusion", "integrated_gradients", "kernel_shap"])
    metrics: list[str] = Field(default=["insertion", "deletion", "comprehensiveness", "sufficiency"])
    granularity: str = "word"
    inference_mode: str = "logits"
    replacement: str | int = "auto"
    target: str | int | None = None
    target_column: str | None = None
    contrast: str | int | None = None
    dictionary: str | None = None
    concepts: list[int] = Field(default_factory=list)
    concept_aggregation: Literal["max", "mean", "sum"] = "max"
    generate: dict[str, Any] = Field(default_factory=dict)
    target_granularity: str = "token"
    truncation: bool = False
    autocast: Literal["bfloat16", "float16"] | None = None
    compile: bool = False
    seed: int = 0
    n_random: Positive = 20

    def check(self) -> None:
        """Refuse names and parameters that there are not, before anything runs.

        Raises:
            UnknownNameError: one that is not there.
            InputError: a method or metric twice, a metric that needs rationales, or targets that are said twice or by
                half, such as concepts without their dictionary.
        """
        kinds = {name: METHODS.get(name) for name in self.methods}
        metrics = {name: METRICS.get(name) for name in self.metrics}
        for name, metric in metrics.items():
            if metric.needs == "rationales":
                raise InputError(f"the metric {name!r} needs rationales, which only Python's `compare_methods` takes")
        for what, names in (("method", self.methods), ("metric", self.metrics)):
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise InputError(f"the {what} {twice[0]!r} is given twice")
        self._check_options({**kinds, **metrics}, "method")
        if self.target is not None and self.target_column is not None:
            raise InputError("what is explained is said once, not by 'target' and 'target_column'")
        if (self.dictionary is None) != (not self.concepts):
            raise InputError("concepts are explained by 'dictionary' and 'concepts' together; one of them is missing")
        if self.concepts and (self.target is not None or self.target_column is not None):
            raise InputError("what is explained is said once, not by a target and by 'concepts'")


class ConceptsRecipe(ModelRecipe):
    """Learn concept dictionaries of layers, score, label and register them.

    What names model, texts and store is as in `AttributeRecipe`.

    Arguments:
        layers: numbers (negative ones from the end) or module paths.
        methods: dictionary families by registry name.
        n_concepts: every size is fitted.
        seeds, first_seed: how many fits of each size, and the seed of the first; two or more give a stability.
        granularity: what a row of activations is: `token`, `word`, `sentence`, `sample`, `cls` or `all_tokens`.
        aggregation: how the tokens of a row become one: `mean`, `max`, `min`, `sum`, `signed_max`, `first` or `last`.
        activation_dtype: how activations are stored.
        autocast: `bfloat16` or `float16` for what torch's autocast runs in half precision.
        holdout: the share of the texts that metrics and importance are computed on and that no dictionary is fitted on.
        fit_split, fit_max_texts: the part of a named data set to fit on, and how much of it, instead of a holdout.
        importance: the method, by registry name, that says how much each concept matters.
        target, contrast, inference_mode: what importance explains, as for attributions: the predicted class by default.
        generate: arguments of a language model's own generation; without them, or a target, a language model's concepts
            get no importance.
        effect_texts: on how many of the held-out texts the model is run with the layer reconstructed; 0 for none.
        workspace: a folder where activations, checkpoints and fitted dictionaries are kept, so that the same job, once
            killed, goes on.
        select_by: the metric that decides which dictionary of a layer is registered (`neurons`, which lose nothing,
            only where they are alone); R² prefers dense codes: compare families at like L0.
        register_best: whether one is.
    """

    kind: Literal["concepts"] = "concepts"
    layers: Annotated[list[int | str], Field(min_length=1)]
    methods: Names = Field(default=["pca", "topk_sae"])
    n_concepts: Annotated[list[Positive], Field(default=[64], min_length=1)]
    seeds: Positive = 2
    first_seed: Annotated[int, Field(ge=0)] = 0
    granularity: str = "token"
    aggregation: str = "mean"
    activation_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    autocast: Literal["bfloat16", "float16"] | None = None
    importance: str = "gradient_x_activation"
    target: str | int | None = None
    contrast: str | int | None = None
    inference_mode: str = "logits"
    generate: dict[str, Any] = Field(default_factory=dict)
    effect_texts: Annotated[int, Field(ge=0)] = 200
    workspace: str | None = None
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    fit_split: str | None = None
    fit_max_texts: Positive | None = None
    select_by: str = "reconstruction/r2"
    register_best: bool = True

    def check(self) -> None:
        """Refuse names that are not registered, before anything runs.

        Raises:
            InputError: a metric to select by that has no direction or that this job does not compute, or a seed among
                the options.
            UnknownNameError: a name that is not registered.
        """
        families = {name: DICTIONARIES.get(name) for name in self.methods}
        metric = CONCEPT_METRICS.get(self.select_by)
        if metric.higher_is_better is None:
            raise InputError(f"the metric {self.select_by!r} has no better end to select a dictionary by")
        if missing := self._why_not_computed(metric.needs):
            raise InputError(f"no dictionary can be selected by {self.select_by!r}: {missing}")
        self._check_options({**families, self.importance: IMPORTANCE.get(self.importance)})
        if any("seed" in given for given in self.options.values()):
            raise InputError("the seeds of dictionaries are set by 'seeds' and 'first_seed', not by an option")

    def _why_not_computed(self, needs: str) -> str | None:
        """Return why this job has no metric that is computed from what it `needs`, as far as the recipe says it."""
        if needs in OF_ROWS:
            return None
        reasons = {
            "dictionaries": None if self.seeds > 1 else "it compares fits of two or more 'seeds'",
            "outputs": None
            if self.effect_texts and self.aggregation == "mean"
            else "the effect on the model needs 'effect_texts' above 0, and rows that are means of their tokens",
            "probe": None
            if self.label_column is not None or self.data in DATASETS
            else "it needs the labels of the texts: give 'label_column'",
        }
        return reasons.get(needs, f"it is computed from {needs}, which a job of kind 'concepts' does not make")


class ProbeRecipe(ModelRecipe):
    """Probe which layer knows what is labelled: one probe for each layer, method and column of labels.

    What names model, texts and store is as in `AttributeRecipe`.

    Arguments:
        layers: numbers (negative ones from the end) or module paths.
        methods: families of probes by registry name.
        label_columns: of a file; of a named data set, `label`. A column of 1 and 0, true and false or yes and no is one
            concept, else each of its values is one.
        granularity, aggregation: what a row of activations is, as in `ConceptsRecipe`; by default the whole text.
        activation_dtype, autocast: as in `ConceptsRecipe`.
        folds: parts of the texts that are held out in turn.
        repeats: control tasks, and deals of the labels, that are averaged.
        seed: of probes, folds, control tasks and deals.
        workspace: a folder where activations and fitted probes are kept, so that the same job, once killed, goes on.
        select_by: the metric that decides which probe of a column is registered.
        register_best: whether one is.
    """

    kind: Literal["probe"] = "probe"
    layers: Annotated[list[int | str], Field(min_length=1)]
    methods: Names = Field(default=["logistic", "mean_difference"])
    label_columns: Names = Field(default=["label"])
    granularity: str = "sample"
    aggregation: str = "mean"
    activation_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    autocast: Literal["bfloat16", "float16"] | None = None
    folds: Annotated[int, Field(ge=2)] = 5
    repeats: Positive = 2
    seed: Annotated[int, Field(ge=0)] = 0
    workspace: str | None = None
    select_by: str = "probing/selectivity"
    register_best: bool = False

    def check(self) -> None:
        """Refuse names that are not registered, before anything runs.

        Raises:
            InputError: something given twice, a seed among the options, or columns of labels that cannot be.
            UnknownNameError: a name that is not registered.
        """
        self._check_options({name: PROBES.get(name) for name in self.methods})
        for what, given in (("method", self.methods), ("column", self.label_columns), ("layer", self.layers)):
            if twice := [name for name, count in Counter(map(str, given)).items() if count > 1]:
                raise InputError(f"the {what} {twice[0]!r} is given twice")
        if self.label_column is not None:
            raise InputError(f"the labels of probes are given by 'label_columns', as in [{self.label_column!r}]")
        if any({"seed", "n_concepts"} & set(given) for given in self.options.values()):
            raise InputError("the seed of probes is set by 'seed', and how many concepts there are by the labels")
        if self.data in DATASETS and self.label_columns != [NAMED_COLUMN]:
            raise InputError(
                f"the data set {self.data!r} has the labels {NAMED_COLUMN!r}, and no others: not {self.label_columns!r}"
            )
        scores = [name for name, metric in CONCEPT_METRICS.items() if metric.needs == "probe scores"]
        if self.select_by not in scores:
            raise UnknownNameError("metric to select a probe by", self.select_by, scores)


def parse_options(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Turn settings such as `kernel_shap.n_perturbations=1000` into a recipe's `options`.

    Raises:
        InputError: one that is not METHOD.NAME=VALUE, or whose value is no YAML.
    """
    options: dict[str, dict[str, Any]] = {}
    for setting in settings:
        name, value = _setting(setting, "METHOD.NAME=VALUE")
        method, dot, parameter = name.partition(".")
        if not dot or not method or not parameter:
            raise InputError(f"an option is METHOD.NAME=VALUE, not {setting!r}")
        options.setdefault(method, {})[parameter] = value
    return options


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """Turn settings such as `max_new_tokens=20` into a mapping.

    Raises:
        InputError: one that is not KEY=VALUE, or whose value is no YAML.
    """
    return dict(_setting(setting, "KEY=VALUE") for setting in settings)


def parse_pairs(settings: Iterable[str]) -> dict[str, str]:
    """Turn settings such as `word=plot` into a mapping of texts.

    Raises:
        InputError: one that is not NAME=VALUE.
    """
    pairs = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip():
            raise InputError(f"a parameter is NAME=VALUE, not {setting!r}")
        pairs[name.strip()] = value
    return pairs


def _setting(text: str, form: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise InputError(f"an option is {form}, not {text!r}")
    # A number that YAML 1.1 reads as text, for want of a dot.
    if re.fullmatch(r"[-+]?[0-9]+[eE][-+]?[0-9]+", value.strip()):
        return name.strip(), float(value)
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"the value of {name.strip()!r} is not YAML: {value!r}") from error


ExplainRecipe = AttributeRecipe | ConceptsRecipe | ProbeRecipe
Recipe = ExplainRecipe | LabelRecipe | ConsimRecipe
_ANY: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Field(discriminator="kind")])


def parse_recipe(values: Any) -> Recipe:
    """Turn plain values into a recipe.

    Raises:
        InputError: a key or value that it cannot have, in one sentence.
    """
    try:
        return _ANY.validate_python(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc'])) or 'recipe'}: {each['msg']}" for each in error.errors())
        raise InputError(f"the recipe cannot be used: {problems}") from error


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        InputError: no such file, no YAML, or a key or value that a recipe cannot have.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read the recipe {str(path)!r}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the recipe {str(path)!r} is not YAML") from error
    return parse_recipe(values)
