"""What the evaluator plug-in can be told: typed, unknown keys refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from interpreto_mlops.errors import InputError, UnknownNameError

_WHERE = "evaluator_config of 'interpreto'"


class EvaluatorConfig(BaseModel):
    """The `evaluator_config` of the evaluator `interpreto`.

    Arguments:
        methods: registry names of attribution methods. The metrics of one have the run schema's names; those of several
            begin with the method's, such as `occlusion/faithfulness/deletion`.
        metrics: registry names of attribution metrics.
        text_column: the column of the texts; by default the only one of strings.
        max_texts: at most so many texts, from the start; by default all.
        target: what is explained in every text: a class of a classifier, by default the predicted one, or the
            continuation for a language model.
        truncation: whether a prompt that is too long is cut on the left instead of refused.
        granularity, inference_mode, replacement: of every method.
        seed: of every method and of the random rankings.
        n_random: random rankings of each text beside every metric.
        options: further parameters by method or metric, such as `{"kernel_shap": {"n_perturbations": 1000}}`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    methods: Annotated[list[str], Field(min_length=1)] = ["occlusion"]
    metrics: list[str] = ["insertion", "deletion", "comprehensiveness", "sufficiency"]
    text_column: str | int | None = None
    max_texts: Annotated[int, Field(ge=1)] | None = None
    target: str | int | None = None
    truncation: bool = False
    granularity: str = "word"
    inference_mode: str = "logits"
    replacement: str | int = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    n_random: Annotated[int, Field(ge=1)] = 20
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)


def parse_config(values: Mapping[str, Any] | None) -> EvaluatorConfig:
    """Turn an `evaluator_config` into a typed one.

    Raises:
        UnknownNameError: a key that there is not; the message lists those there are.
        InputError: a value that a key cannot have, or a method or metric twice.
    """
    given = dict(values or {})
    for key in given:
        if key not in EvaluatorConfig.model_fields:
            raise UnknownNameError(f"key of the {_WHERE}", key, EvaluatorConfig.model_fields)
    try:
        config = EvaluatorConfig.model_validate(given)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']}, not {each['input']!r}" for each in error.errors()
        )
        raise InputError(f"the {_WHERE} cannot be used: {problems}") from error
    for what, names in (("method", config.methods), ("metric", config.metrics)):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise InputError(f"the {_WHERE} has the {what} {twice[0]!r} twice")
    return config


def is_meant(values: Mapping[str, Any] | None) -> bool:
    """Return whether a configuration is meant for this evaluator: it has a key that only this one knows."""
    return isinstance(values, Mapping) and any(key in EvaluatorConfig.model_fields for key in values)
