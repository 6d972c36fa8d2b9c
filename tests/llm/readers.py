"""Language models that follow a rule, for simulations: what they know is what they read in the prompt, or are given."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from interpreto_mlops.llm import Answer, LanguageModel, Price, Prompt
from interpreto_mlops.llm.simulation import Contributions, Explanation, Feature, FeatureKind, Sample, Study

Sections = dict[str, list[Any]]
Rule = Callable[[Sections], Sequence[str]]

WEIGHTS = {"++": 3.0, "+": 1.0, "-": -1.0, "--": -3.0}


def read_sections(user: str) -> Sections:
    """The sections of a simulation's prompt, each line as JSON: classes, concepts or words, examples, samples."""
    sections: Sections = {}
    for block in user.split("\n\n"):
        title, *lines = block.splitlines()
        sections[title.split(" and ")[0].rstrip(":").lower()] = [json.loads(line) for line in lines]
    (sections["classes"],) = sections["classes"]
    return sections


class RuleReader(LanguageModel):
    """Answers by a rule that says a class for each sample of the prompt."""

    def __init__(self, rule: Rule, name: str = "rule", price: Price | None = None) -> None:
        self.name, self.rule, self.price = name, rule, price
        self.asked: list[Prompt] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"backend": "rule", "name": self.name}

    def answer(self, prompt: Prompt) -> Answer:
        self.asked.append(prompt)
        text = answer_text(prompt, self.rule)
        return Answer(text, self.count_tokens(prompt.system + prompt.user), self.count_tokens(text))


def answer_text(prompt: Prompt, rule: Rule) -> str:
    """The answer in the form that the prompt asks for."""
    said = rule(read_sections(prompt.user))
    if prompt.schema is not None:
        return json.dumps({f"Sample_{i}": each for i, each in enumerate(said, 1)})
    return "\n".join(f"Sample_{i}: {each}" for i, each in enumerate(said, 1))


def oracle(known: Mapping[str, str]) -> Rule:
    """Knows the model's prediction of each text."""
    return lambda sections: [known[sample["text"]] for sample in sections["samples to predict"]]


def copy_labels(sections: Sections) -> list[str]:
    """Repeats the labels of the examples, as they come."""
    labels = [each["class"] for each in sections.get("examples", [])] or sections["classes"]
    return [labels[i % len(labels)] for i in range(len(sections["samples to predict"]))]


def at_random(sections: Sections) -> list[str]:
    """Draws a class for each sample."""
    draw = random.Random(json.dumps(sections, sort_keys=True))
    return [draw.choice(sections["classes"]) for _ in sections["samples to predict"]]


def by_importance(sections: Sections) -> list[str]:
    """Adds up, for each class, the marks of the concepts or words that a text holds; says nothing else."""
    features = sections.get("concepts") or sections.get("words") or []
    said = []
    for sample in sections["samples to predict"]:
        held = set(re.findall(r"\w+", sample["text"].lower()))
        totals = dict.fromkeys(sections["classes"], 0.0)
        for feature in features:
            if held & set(feature.get("words", [feature["id"]])):
                for name, mark in feature["importance"].items():
                    totals[name] += WEIGHTS[mark]
        said.append(max(totals, key=lambda name: totals[name]))
    return said


def planted_study(
    classes: Sequence[str],
    *,
    n: int = 240,
    mistakes: float = 0.3,
    labelled: bool = True,
    shuffled: bool = False,
    seed: int = 0,
) -> Study:
    """Texts that hold one word of their predicted class (`sign0`, `sign1`, …) among others, and what says so.

    The concept of a class's word has all the importance for it. `shuffled` gives it to the next class instead. The
    reconstruction says what the model says but for every fifth text.
    """
    rng = np.random.default_rng(seed)
    n_classes = len(classes)
    samples = []
    for i in range(n):
        said = i % n_classes
        words = [f"word{k}" for k in rng.integers(0, 50, 6)] + [f"sign{said}"]
        label = said if rng.random() >= mistakes else (said + 1) % n_classes
        samples.append(
            Sample(
                text=f"text {i}: " + " ".join(rng.permutation(words)),
                index=i,
                prediction=said,
                label=label if labelled else None,
                of_concepts=said if i % 5 else (said + 1) % n_classes,
                contributions=Contributions(np.asarray([said, n_classes]), np.asarray([0.9, -0.1])),
            )
        )
    importance = np.zeros((n_classes, n_classes + 2))
    for c in range(n_classes):
        importance[c, (c + shuffled) % n_classes] = 0.9
        importance[c, n_classes] = 0.06
        importance[c, n_classes + 1] = 0.04
    names = [*(f"sign{c}" for c in range(n_classes)), "noise", "nothing"]
    features = tuple(Feature(100 + 7 * k, (name,)) for k, name in enumerate(names))
    return Study(tuple(classes), samples, Explanation(FeatureKind.CONCEPT, features, importance))


def known(study: Study) -> dict[str, str]:
    """What the model says of each text."""
    return {sample.text: study.classes[sample.prediction] for sample in study.samples}
