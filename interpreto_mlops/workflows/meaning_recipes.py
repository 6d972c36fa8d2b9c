"""Recipes of jobs that ask a language model about a stored explanation: labels of concepts, and simulatability."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from interpreto_mlops.concepts import IMPORTANCE
from interpreto_mlops.concepts.interpretation_metrics import INTERPRETATION_METRICS
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.llm.simulation import Setting, Simulation
from interpreto_mlops.registry import check_options
from interpreto_mlops.workflows.asking import Asked
from interpreto_mlops.workflows.recipe_base import StoreRecipe

_GROUP = "interpretation/"


class LabelRecipe(StoreRecipe):
    """Name the concepts of a stored dictionary, score the names, and register them as its next version.

    What names texts and store is as in `AttributeRecipe`.

    Arguments:
        dictionary: `models:/name@alias`, `models:/name/1`, `models:/m-…` or `runs:/<run id>/<name>`.
        base_model: where the model that it was learned from is, if it is no longer where the dictionary was told.
        llm: the language model that gives the names.
        labels: a CSV, TSV, JSONL or Parquet file of names that people gave, instead, or to have the last word: columns
            `concept`, `label`, and `explanation` if there is one.
        by: who gave them.
        concepts: the concepts to name; all by default.
        n_examples: what each concept is shown by: so many of its strongest words, or rows where those are more.
        evidence: what else is shown: `vocab_proj` and `token_change`, where the model and the layer allow them.
        n_silent: texts on which a concept does not fire that are shown beside them.
        answer_tokens: the most tokens of an answer with a name; a model that thinks first needs more.
        metrics: how the names are scored (`interpreto-mlops methods` lists the metrics); by questions, so none for
            names that people gave unless `llm` is there, too.
        options: of a metric by its name, such as `{detection: {n_active: 10}}`.
        shuffled: whether the names of other concepts are scored, too, which doubles the questions.
        holdout: the share of the texts that names are scored on and not made from.
        importance: how much each concept matters to the classes of a classifier, by registry name; None for none.
        effect_texts: on how many of the held-out texts the model is run with the layer reconstructed; 0 for none.
        seed: of what is drawn.
        register_version: whether the dictionary with its new names becomes the next version of its registered model.
        name: of the registered model, for a dictionary that has none.
    """

    kind: Literal["label"] = "label"
    dictionary: str
    data: str
    base_model: str | None = None
    llm: Asked | None = None
    labels: str | None = None
    by: str = ""
    concepts: list[Annotated[int, Field(ge=0)]] | None = None
    n_examples: Annotated[int, Field(ge=1)] = 10
    n_silent: Annotated[int, Field(ge=0)] = 5
    answer_tokens: Annotated[int, Field(ge=1)] = 200
    evidence: list[Literal["vocab_proj", "token_change"]] = Field(default_factory=list)
    metrics: list[str] = Field(default=["detection"])
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    shuffled: bool = True
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.3
    importance: str | None = "gradient_x_activation"
    effect_texts: Annotated[int, Field(ge=0)] = 200
    seed: Annotated[int, Field(ge=0)] = 0
    register_version: bool = True
    name: str | None = None

    def check(self) -> None:
        """Refuse what cannot be asked, before anything runs.

        Raises:
            InputError: neither a language model nor names.
            UnknownNameError: a metric, an option or an importance that there is not.
        """
        if self.llm is None and self.labels is None:
            raise InputError("say who names the concepts: a language model (llm) or a file of names (labels)")
        if self.llm is not None:
            self.llm.check()
        if self.importance is not None:
            IMPORTANCE.get(self.importance)
        for name in self.scored:
            INTERPRETATION_METRICS.get(name)
        for name, given in self.options.items():
            full = _full(name)
            if full not in self.scored:
                raise UnknownNameError("metric in options", name, self.scored)
            check_options(INTERPRETATION_METRICS.get(full), name, given)

    @property
    def scored(self) -> list[str]:
        """The metrics by their names in runs; none where nobody can be asked."""
        return [] if self.llm is None else [_full(name) for name in self.metrics]


class ConsimRecipe(StoreRecipe):
    """Ask a language model what a classifier says of texts, without and with its stored explanation.

    What names texts and store is as in `AttributeRecipe`; `label_column` names the right classes.

    Arguments:
        subject: a dictionary (`models:/…`, `runs:/<run id>/<name>`), or a run of attributions (`runs:/<run id>`).
        base_model: where the explained model is, if it is no longer where the dictionary was told.
        llm: the language model that reads.
        importance: of concepts, by registry name.
        settings: what the reader is shown: L1, E1, L2, E2, E3, U1.
        seeds: how many draws of texts.
        n_learn, n_evaluate: texts that are shown, and texts that are asked for.
        mistakes: the share of both that the model gets wrong, where the right classes are known.
        anonymous: whether classes are called `Class_1`, `Class_2`, ….
        answers: `lines`, or `json` for back ends that hold the model to a schema.
        answer_tokens: the most tokens of an answer; by default what all lines need, several times. A model that thinks
            first needs more.
        min_parsed: the share of answers that must be clear for a setting to have a score.
        n_words: of attributions, the most words of a class and of a text.
    """

    kind: Literal["consim"] = "consim"
    subject: str
    data: str | None = None
    base_model: str | None = None
    llm: Asked
    importance: str = "gradient_x_activation"
    settings: list[str] = Field(default=[setting.value for setting in Setting], min_length=1)
    seeds: Annotated[int, Field(ge=1)] = 5
    n_learn: Annotated[int, Field(ge=1)] = 20
    n_evaluate: Annotated[int, Field(ge=1)] = 20
    mistakes: Annotated[float, Field(ge=0, le=1)] = 0.5
    anonymous: bool = False
    answers: Literal["lines", "json"] = "lines"
    answer_tokens: Annotated[int, Field(ge=1)] | None = None
    min_parsed: Annotated[float, Field(ge=0, le=1)] = 0.8
    n_words: Annotated[int, Field(ge=1)] = 10

    def check(self) -> None:
        """Refuse what cannot be asked, before anything runs.

        Raises:
            InputError: a number that a simulation does not take.
            UnknownNameError: a setting, a back end or an importance that there is not.
        """
        self.llm.check()
        IMPORTANCE.get(self.importance)
        Simulation(**self.simulation)

    @property
    def simulation(self) -> dict[str, Any]:
        """The parameters of the simulation."""
        named = ("settings", "n_learn", "n_evaluate", "mistakes", "anonymous", "answers", "min_parsed")
        given = {name: getattr(self, name) for name in named}
        return {**given, "seeds": tuple(range(self.seeds)), "max_tokens": self.answer_tokens}


def _full(name: str) -> str:
    return name if name.startswith(_GROUP) else _GROUP + name
