"""From an attribution back to the question that it answers, for metrics of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from interpreto_mlops.attributions.results import Attribution
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.layer_targets import LayerQuestion, LayerTargets, layer_targets
from interpreto_mlops.models.questions import ClassQuestion, ContinuationQuestion, LabelQuestion, Question
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.granularity import Elements, parse_grain


def recalled(
    model: TextModel, explanations: Iterable[Attribution], targets: Any = None
) -> Iterator[tuple[Attribution, Question, Elements]]:
    """Yield each attribution with the question that it answers and the elements that it scores.

    A classifier's texts are tokenised again, so that another model of the same classes may be asked; of a continuation
    the very token ids are used that were explained.

    Arguments:
        model: the model that is asked.
        explanations: of outputs, or of a layer.
        targets: those of a layer, as the method was called with them: what is stored of them is their names.

    Raises:
        InputError: the model has other classes or elements, or another task, than the one that was explained; or the
            texts are hidden; or explanations of a layer without their targets, or other targets.
    """
    explanations = list(explanations)
    for item in explanations:
        if item.is_hidden:
            raise InputError(f"text {item.index} is hidden, and a model cannot read its hash; explain the text anew")
    at_layer = _at_layer(model, explanations, targets)
    if model.task == "generation" and at_layer is None:
        for item in explanations:
            yield item, _continuation(model, item), _stored_elements(item)
        return
    for item, encoding in zip(explanations, model.encode(_raw(item) for item in explanations), strict=True):
        elements = encoding.elements(parse_grain(item.parameters.get("granularity", "word")))
        if not np.array_equal(elements.spans, item.spans):
            raise InputError(f"the elements of text {item.index} are not those of {model.name!r} for it")
        # Of a part of a data set, texts keep the numbers that errors name them by.
        encoding = replace(encoding, index=item.index)
        question = _classes(model, item, encoding) if at_layer is None else _concepts(model, item, encoding, at_layer)
        yield item, question, elements


def _at_layer(model: TextModel, explanations: list[Attribution], targets: Any) -> Mapping[int, LayerTargets] | None:
    """Return the targets of each explanation of a layer, by the text's index, or None for those of outputs."""
    given = layer_targets(targets)
    for item in explanations:
        layers = {target.layer for target in item.targets} - {None}
        if layers and given is None:
            raise InputError(
                f"text {item.index} explains concepts of the layer {layers.pop()!r}; give the metric the targets that "
                "the method was called with, as in Deletion(model, targets=…)"
            )
        if item.targets and not layers and given is not None:
            raise InputError(f"text {item.index} explains the model's outputs; leave out targets={targets!r}")
    if given is None:
        return None
    for source in given if isinstance(given, list) else [given]:
        source.check_model(model)
    if isinstance(given, list) and (beyond := [item.index for item in explanations if item.index >= len(given)]):
        raise InputError(f"there are {len(given)} targets, one a text, and none for text {beyond[0]}")
    return {item.index: given[item.index] if isinstance(given, list) else given for item in explanations}


def _concepts(
    model: TextModel, item: Attribution, encoding: Encoding, sources: Mapping[int, LayerTargets]
) -> LayerQuestion:
    question = LayerQuestion(model, encoding, sources[item.index])
    if question.expected != item.targets:
        found, given = ([target.title for target in targets] for targets in (item.targets, question.expected))
        raise InputError(f"text {item.index} explains {found}, and the metric was given the targets {given}")
    return question


def _raw(item: Attribution) -> Any:
    if item.prompt_tokens is not None:
        raise InputError(f"text {item.index} explains a continuation, which needs a language model")
    if item.boundary is None:
        return item.text
    return item.text[: item.boundary - 1], item.text[item.boundary :]


def _classes(model: TextModel, item: Attribution, encoding: Encoding) -> Question:
    for target in item.targets:
        label = model.labels[target.id] if target.id < len(model.labels) else None
        # A token's label is named after the token.
        if label is None or not (target.name == label or (target.positions and target.name.endswith(f": {label}"))):
            raise InputError(f"text {item.index} explains the class {target.name!r}, which {model.name!r} lacks")
    classes = tuple(target.id for target in item.targets)
    contrast = tuple(label for target in item.targets for label in target.contrast)
    if model.task == "classification":
        return ClassQuestion(model, encoding, classes or None, contrast)
    places = [(target.positions, target.name) for target in item.targets]
    return LabelQuestion(model, encoding, places, classes, contrast)


def _continuation(model: TextModel, item: Attribution) -> ContinuationQuestion:
    if item.ids is None or item.prompt_tokens is None:
        raise InputError(f"text {item.index} explains no continuation, and {model.name!r} is a language model")
    scored = [i for target in item.targets for i in (*target.ids, *target.contrast)]
    if max(item.ids, default=0) >= model.embedding.weight.shape[0] or max(scored, default=0) >= model.vocabulary:
        raise InputError(f"text {item.index} holds token ids that {model.name!r} does not have")
    encoding = Encoding(
        text=item.text,
        index=item.index,
        ids=item.ids,
        special=model.tokens.special_places(item.ids),
        tokens=(),
        offsets=None,
        truncated=item.truncated,
        boundary=item.boundary,
        prompt_tokens=item.prompt_tokens,
    )
    return ContinuationQuestion(model, encoding, item.targets)


def _stored_elements(item: Attribution) -> Elements:
    assert item.of_token is not None
    return Elements(item.elements, item.spans, item.of_token)
