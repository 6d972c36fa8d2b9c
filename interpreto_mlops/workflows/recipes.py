"""What a job is asked to do: typed, unknown keys refused, written beside every run as `recipe.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from interpreto_mlops.attributions import METHODS
from interpreto_mlops.attributions.metrics import METRICS
from interpreto_mlops.concepts import DICTIONARIES
from interpreto_mlops.concepts import METRICS as CONCEPT_METRICS
from interpreto_mlops.errors import InputError, UnknownNameError

Positive = Annotated[int, Field(ge=1)]
Names = Annotated[list[str], Field(min_length=1)]


class _Recipe(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    data: str
    text_column: str = "text"
    label_column: str | None = None
    split: str = "test"
    max_texts: Positive | None = None
    tracking_uri: str | None = None
    experiment: str | None = None
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def options_of(self, method: str) -> dict[str, Any]:
        """Return the parameters that the recipe gives one method."""
        return dict(self.options.get(method, {}))

    def _check_options(self, methods: list[str]) -> None:
        for name in self.options:
            if name not in methods:
                raise UnknownNameError("method in options", name, methods)


class AttributeRecipe(_Recipe):
    """Explain texts by attributions and score the explanations.

    Arguments:
        model: a hub id, a folder, or an MLflow address (`models:/name@alias`).
        data: a file (CSV, TSV, JSONL, Parquet) or the name of a data set (`library_docs`).
        text_column, label_column: of a file.
        split: of a named data set.
        max_texts: at most so many texts, from the start.
        tracking_uri, experiment: where the runs go.
        methods, metrics: by registry name.
        granularity, inference_mode, replacement: of every method.
        target: the class to explain in every text; the predicted one by default.
        seed: of every method and of the random rankings.
        n_random: random rankings of each text beside every metric.
        options: further parameters by method, such as `{kernel_shap: {n_perturbations: 1000}}`.
    """

    kind: Literal["attribute"] = "attribute"
    methods: Names = ["occlusion", "integrated_gradients", "kernel_shap"]
    metrics: list[str] = ["insertion", "deletion", "comprehensiveness", "sufficiency"]
    granularity: str = "word"
    inference_mode: str = "logits"
    replacement: str | int = "auto"
    target: str | int | None = None
    seed: int = 0
    n_random: Positive = 20

    def check(self) -> None:
        """Refuse names that are not registered, before anything runs.

        Raises:
            UnknownNameError: one that is not.
        """
        for name in self.methods:
            METHODS.get(name)
        for name in self.metrics:
            METRICS.get(name)
        self._check_options(self.methods)


class ConceptsRecipe(_Recipe):
    """Learn concept dictionaries of layers, score, label and register them.

    What names model, texts and store is as in `AttributeRecipe`.

    Arguments:
        layers: numbers (negative ones from the end) or module paths.
        methods: dictionary families by registry name.
        n_concepts: every size is fitted.
        seeds, first_seed: how many fits of each size, and the seed of the first; two or more give a stability.
        granularity: what a row of activations is.
        holdout: the share of the texts that metrics and importance are computed on and that no dictionary is fitted on.
        fit_split, fit_max_texts: the part of a named data set to fit on, and how much of it, instead of a holdout.
        select_by: the metric that decides which dictionary of a layer is registered.
        register_best: whether one is.
    """

    kind: Literal["concepts"] = "concepts"
    layers: Annotated[list[int | str], Field(min_length=1)]
    methods: Names = ["pca", "topk_sae"]
    n_concepts: Annotated[list[Positive], Field(min_length=1)] = [64]
    seeds: Positive = 2
    first_seed: Annotated[int, Field(ge=0)] = 0
    granularity: str = "token"
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    fit_split: str | None = None
    fit_max_texts: Positive | None = None
    select_by: str = "reconstruction/r2"
    register_best: bool = True

    def check(self) -> None:
        """Refuse names that are not registered, before anything runs.

        Raises:
            InputError: a metric without a direction to select by, or a seed among the options.
            UnknownNameError: a name that is not registered.
        """
        for name in self.methods:
            DICTIONARIES.get(name)
        if CONCEPT_METRICS.get(self.select_by).higher_is_better is None:
            raise InputError(f"the metric {self.select_by!r} has no better end to select a dictionary by")
        self._check_options(self.methods)
        if any("seed" in given for given in self.options.values()):
            raise InputError("the seeds of dictionaries are set by 'seeds' and 'first_seed', not by an option")


Recipe = AttributeRecipe | ConceptsRecipe
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
