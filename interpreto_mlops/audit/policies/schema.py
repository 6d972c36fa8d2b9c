"""What a policy can ask for: one class for each kind of rule, every key typed, unknown ones refused."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from interpreto_mlops.attributions.comparison import FEWEST
from interpreto_mlops.audit.policies.terms import term_of
from interpreto_mlops.tracking import schema

Name = Annotated[str, Field(min_length=1, max_length=200)]
Names = Annotated[list[Name], Field(min_length=1, max_length=1000)]
Positive = Annotated[int, Field(ge=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Confidence = Annotated[float, Field(ge=0.5, lt=1)]
Digest = Annotated[str, Field(pattern=r"^[\w.:+=/-]{1,36}$")]


class Rule(BaseModel):
    """A rule of a policy.

    Arguments:
        name: what the report calls it; by default its kind and what it is about.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    rule: str
    name: Name | None = None

    @property
    def title(self) -> str:
        """What the report calls it."""
        about = getattr(self, "metric", None)
        return self.name or (self.rule if about is None else f"{self.rule}: {about}")


class SelectingRule(Rule):
    """A rule that looks at some of a version's explanations.

    Arguments:
        methods: of attribution or concepts, each of which must be there; by default whatever is.
        layers: of dictionaries, each of which must be there.
        data: the digest of the data set that was explained, or that a dictionary was fitted or scored on.
        within_days: how many days ago an explanation may have begun.
    """

    methods: Names | None = None
    layers: Names | None = None
    data: Digest | None = None
    within_days: Annotated[float, Field(gt=0, le=36500)] | None = None


class _OfMetric(SelectingRule):
    metric: Name

    @field_validator("metric")
    @classmethod
    def _key(cls, name: str) -> str:
        return schema.metric_key(name)


class EvidenceRule(SelectingRule):
    """The version was explained: lately, on these data, by these methods, and scored.

    Arguments:
        metrics: each must have a value for each of the methods that it judges.
        min_texts: how many texts must have been explained.
    """

    rule: Literal["evidence"]
    metrics: Names | None = None
    min_texts: Positive = 1

    @field_validator("metrics")
    @classmethod
    def _keys(cls, names: list[str] | None) -> list[str] | None:
        return None if names is None else [schema.metric_key(name) for name in names]


class ThresholdRule(_OfMetric):
    """A metric lies within bounds.

    Arguments:
        metric: by its key (`faithfulness/deletion`, `reconstruction/r2`); without a group one of faithfulness.
        min, max: the bounds, of which one at least is given; a value at the bound is allowed.
    """

    rule: Literal["threshold"]
    min: Number | None = None
    max: Number | None = None

    @model_validator(mode="after")
    def _bounded(self) -> ThresholdRule:
        if self.min is None and self.max is None:
            raise ValueError("give 'min', 'max' or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"'min' {self.min!r} is above 'max' {self.max!r}")
        return self


class MarginRule(_OfMetric):
    """A metric is better than that of random rankings, or of random directions.

    Arguments:
        metric: as of a threshold.
        at_least: by how much, in the metric's unit and its better direction.
        confidence: of the lower bound over texts that must reach it; by default the mean itself must.
    """

    rule: Literal["margin"]
    at_least: Number = 0.0
    confidence: Confidence | None = None


class ChampionRule(_OfMetric):
    """A metric is no worse than that of the version audited against, on the texts that both explain.

    Arguments:
        metric: of attributions, as of a threshold.
        by: how much worse it may be.
        confidence: that it is no worse by more.
        min_texts: with fewer texts in common it cannot be told.
    """

    rule: Literal["champion"]
    by: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    confidence: Confidence = 0.95
    min_texts: Annotated[int, Field(ge=FEWEST)] = 20


def _known_words(terms: list[str]) -> list[str]:
    for term in terms:
        if not term_of(term):
            raise ValueError(f"{term!r} holds no word, so that nothing could match it")
    return terms


class WordsRule(SelectingRule):
    """Words are not among those that speak most for a class.

    Arguments:
        words: whole words, or several in a row; upper and lower case are the same.
        classes: for which they must not speak, by name; by default any.
        top: how many elements of a text count, of those that speak for the class.
        allowed_share: the share of a class's texts in which one of the words may be among them.
        occurs_in: in how many texts the words must stand, for the rule to have been tested.
    """

    rule: Literal["words"]
    words: Names
    classes: Names | None = None
    top: Positive = 5
    allowed_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    occurs_in: Positive = 1

    _words = field_validator("words")(_known_words)


class ConceptsRule(SelectingRule):
    """Concepts with a word in their label are not among those that speak most for a class.

    Arguments:
        concepts: words, or several in a row, of a concept's label; upper and lower case are the same.
        classes: for which they must not speak, by name; by default any.
        top: how many concepts count, of those that speak for the class.
    """

    rule: Literal["concepts"]
    concepts: Names
    classes: Names | None = None
    top: Positive = 10

    _concepts = field_validator("concepts")(_known_words)


class StabilityRule(SelectingRule):
    """Fits of a dictionary with other seeds find the same concepts.

    Arguments:
        min: the least mean cosine of matched concepts (`stability/stability`).
        over_random: by how much it must exceed that of random directions.
    """

    rule: Literal["stability"]
    min: Annotated[float, Field(gt=-1, le=1)]
    over_random: Number | None = None


class IntegrityRule(Rule):
    """The version, the runs that explain it and what they refer to are as they were logged."""

    rule: Literal["integrity"]


AnyRule = (
    EvidenceRule | ThresholdRule | MarginRule | ChampionRule | WordsRule | ConceptsRule | StabilityRule | IntegrityRule
)
RULES: dict[str, type[Rule]] = {
    "evidence": EvidenceRule,
    "threshold": ThresholdRule,
    "margin": MarginRule,
    "champion": ChampionRule,
    "words": WordsRule,
    "concepts": ConceptsRule,
    "stability": StabilityRule,
    "integrity": IntegrityRule,
}


class Policy(BaseModel):
    """What must be true of a version's evidence.

    Arguments:
        name: what the report calls it.
        rules: all of which must pass.
        text: the YAML that it was read from.
        sha256: of that text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Name = "policy"
    rules: Annotated[list[AnyRule], Field(min_length=1, max_length=200)]
    text: str = Field(repr=False)
    sha256: str

    @property
    def compares(self) -> bool:
        """Whether a rule needs a version to audit against."""
        return any(isinstance(rule, ChampionRule) for rule in self.rules)
