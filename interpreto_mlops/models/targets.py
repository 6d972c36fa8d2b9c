"""From what a user gives as texts and targets to one question for each text, by the model's task."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from itertools import repeat
from typing import Any

import numpy as np

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.continuations import continued, given_ids
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.layer_targets import layer_questions, layer_targets
from interpreto_mlops.models.objectives import Target
from interpreto_mlops.models.questions import ClassQuestion, ContinuationQuestion, LabelQuestion, Question
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.granularity import Elements, Grain, Granularity

_TASKS = ("classification", "token_classification", "generation")


def questions(
    model: TextModel,
    texts: Iterable[Any],
    targets: Any = None,
    *,
    contrast: Any = None,
    granularity: Grain = Granularity.WORD,
    target_granularity: Grain = Granularity.TOKEN,
    generation: Mapping[str, Any] | None = None,
    truncation: bool = False,
) -> Iterator[Question]:
    """Ask one question about each text.

    Arguments:
        model: a sequence or token classifier, or a language model.
        texts: read lazily as long as neither targets nor contrasts are given for each of them.
        targets: None for what the model itself says; one target for all texts, or one entry for each; or
            `LayerTargets`, for all texts or one for each, which a model of any task has.
        contrast: what the targets are explained against, in the same form.
        granularity: of the elements that a token classifier's targets are counted by.
        target_granularity: of generated targets: single tokens, or words or sentences of them.
        generation: arguments of `generate`.
        truncation: whether a prompt that is too long is cut on the left.

    Raises:
        InputError: texts or targets that cannot be used.
    """
    at_layer = layer_targets(targets)
    if at_layer is not None:
        refused = {"contrast": contrast, "generation": generation, "truncation": truncation}
        return layer_questions(model, texts, at_layer, refused)
    if model.task not in _TASKS:
        raise InputError(
            f"attributions need a classifier or a language model; {model.name!r} is a {type(model.model).__name__}, of "
            "which only concepts can be explained: give `concept_targets`"
        )
    if model.task == "generation":
        return _continuations(
            model, texts, targets, contrast, target_granularity, generation=generation, truncation=truncation
        )
    if generation or truncation:
        raise InputError(f"generation and truncation are for language models, and {model.name!r} is a classifier")
    if model.task == "classification":
        return _of_classes(model, texts, targets, contrast)
    return _of_labels(model, texts, targets, contrast, granularity)


def check_texts(texts: Any) -> None:
    """Refuse what holds no texts: one string, token ids, a table.

    Raises:
        InputError: it is not an iterable of texts.
    """
    if isinstance(texts, str):
        raise InputError(f"give a list of texts, not one string ({texts[:40]!r})")
    if isinstance(texts, Mapping):
        names = ", ".join(repr(name) for name in list(texts)[:5])
        raise InputError(f"give raw texts, whose characters get the scores, not a mapping of {names or 'nothing'}")
    if not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) != 1:
        raise InputError(f"give a list of texts, not a {type(texts).__name__}")


def _one_each(given: Any, texts: Iterable[Any], what: str, read: Callable[[Any, int], Any]) -> Iterable[Any]:
    """Return one entry for each text: the same one for all, or one from a list that is as long as the texts.

    All entries are read here, so that a wrong one is refused before the model runs.
    """
    if given is None or isinstance(given, str) or not isinstance(given, Iterable) or getattr(given, "ndim", 1) == 0:
        return repeat(None if given is None else read(given, 0))
    entries = list(given)
    if not isinstance(texts, Sized) or len(entries) != len(texts):
        raise InputError(
            f"{len(entries)} {what}s were given for {len(texts) if isinstance(texts, Sized) else 'a stream of'} texts; "
            f"give one entry for each text, or one {what}"
        )
    return [None if entry is None else read(entry, k) for k, entry in enumerate(entries)]


def _of_classes(model: TextModel, texts: Iterable[Any], targets: Any, contrast: Any) -> Iterator[Question]:
    classes, others = (
        _one_each(given, texts, what, lambda entry, _: _class_ids(entry, model))
        for given, what in ((targets, "target"), (contrast, "contrast"))
    )
    encoded = zip(model.encode(texts), classes, others, strict=False)
    return (ClassQuestion(model, encoding, entry, other or ()) for encoding, entry, other in encoded)


def _of_labels(
    model: TextModel, texts: Iterable[Any], targets: Any, contrast: Any, granularity: Grain
) -> Iterator[Question]:
    entries = _one_each(targets, texts, "target", lambda entry, k: _label_entry(entry, k, model))
    others = _one_each(contrast, texts, "contrast", lambda entry, _: _class_ids(entry, model))
    encoded = zip(model.encode(texts), entries, others, strict=False)
    return (_labels(model, encoding, entry, other or (), granularity) for encoding, entry, other in encoded)


def _continuations(
    model: TextModel, texts: Iterable[Any], targets: Any, contrast: Any, granularity: Grain, **options: Any
) -> Iterator[Question]:
    entries = _one_each(targets, texts, "target", lambda entry, k: given_ids(model, entry, k))
    # One token that stands for all places may be given as a bare id.
    others = _one_each(
        contrast, texts, "contrast", lambda entry, k: given_ids(model, entry if _whole(entry) is None else [entry], k)
    )
    pairs = continued(model, texts, entries, **options)
    joined = zip(pairs, others, strict=False)
    return (_continuation(model, encoding, ids, other, granularity) for (encoding, ids), other in joined)


def _class_ids(entry: Any, model: TextModel) -> tuple[int, ...]:
    # Arrays and tensors without a dimension say that they are iterable.
    if isinstance(entry, str) or not isinstance(entry, Iterable) or getattr(entry, "ndim", 1) == 0:
        return (label_id(entry, model),)
    classes: Sequence[Any] = list(entry)
    if not classes:
        raise InputError("a text was given an empty list of targets; give at least one class, or None")
    return tuple(label_id(each, model) for each in classes)


def label_id(value: Any, model: TextModel) -> int:
    """Return the id of a class or label that is given by id or name.

    Raises:
        InputError: something else, or one that the model does not have.
    """
    if isinstance(value, str):
        if value not in model.labels:
            raise UnknownNameError("class", value, model.labels)
        return model.labels.index(value)
    number = _whole(value)
    if number is None:
        raise InputError(f"a target must be a class id or label, not {value!r}")
    if not 0 <= number < len(model.labels):
        known = ", ".join(f"{i} ({label})" for i, label in enumerate(model.labels))
        raise InputError(f"there is no class {number}; the model {model.name!r} has {known}")
    return number


def _whole(value: Any) -> int | None:
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _label_entry(entry: Any, index: int, model: TextModel) -> int | list[tuple[Any, int]]:
    """Read the targets of a token classifier: a label for all elements, or pairs of a place and a label."""
    if isinstance(entry, str) or _whole(entry) is not None or not isinstance(entry, Iterable):
        return label_id(entry, model)
    pairs = [entry] if isinstance(entry, tuple) else list(entry)
    if not pairs:
        raise InputError(f"text {index} was given an empty list of targets; give at least one, or None")
    for pair in pairs:
        if not _is_pair(pair) or (_whole(pair[0]) is None and not _is_span(pair[0])):
            raise InputError(
                f"a target of text {index} must be a label, or a pair of an element (its number or its character "
                f"span) and a label, not {pair!r}"
            )
    return [(where, label_id(label, model)) for where, label in pairs]


def _is_pair(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2


def _is_span(value: Any) -> bool:
    return _is_pair(value) and all(_whole(end) is not None for end in value)


def _labels(
    model: TextModel,
    encoding: Encoding,
    entry: int | list[tuple[Any, int]] | None,
    contrast: tuple[int, ...],
    granularity: Grain,
) -> LabelQuestion:
    """Ask for labels of elements: of all where no place is given."""
    elements = encoding.elements(granularity)
    everywhere = [_place(encoding, elements, k) for k in range(len(elements))]
    if entry is None:
        return LabelQuestion(model, encoding, everywhere, None, contrast)
    if isinstance(entry, int):
        return LabelQuestion(model, encoding, everywhere, (entry,) * len(everywhere), contrast)
    places = [_place(encoding, elements, where) for where, _ in entry]
    return LabelQuestion(model, encoding, places, tuple(label for _, label in entry), contrast)


def _place(encoding: Encoding, elements: Elements, where: Any) -> tuple[tuple[int, ...], str]:
    """Return the first token of each element at a place, and the place's text."""
    number = _whole(where)
    if number is not None:
        if not 0 <= number < len(elements):
            raise InputError(f"text {encoding.index} has no element {number}; it has {len(elements)}")
        chosen, name = [number], elements.names[number]
    else:
        start, end = where
        chosen = [k for k, (a, b) in enumerate(elements.spans.tolist()) if a < end and start < b]
        name = encoding.text[start:end]
        if not chosen:
            raise InputError(f"no element of text {encoding.index} lies in the characters {start} to {end}")
    return tuple(int(np.flatnonzero(elements.of_token == k)[0]) for k in chosen), name


def _continuation(
    model: TextModel, encoding: Encoding, ids: Ids, other: Ids | None, granularity: Grain
) -> ContinuationQuestion:
    """Ask for each token of a continuation, or for groups of them."""
    first = len(encoding.special) - len(ids)
    against = None if other is None else _as_long(other, len(ids), encoding.index)
    targets = []
    for group, name in _groups(encoding, first, granularity):
        chosen = tuple(int(ids[place - first]) for place in group)
        others = () if against is None else tuple(int(against[place - first]) for place in group)
        targets.append(
            Target(
                id=chosen[0],
                name=name,
                positions=tuple(place - 1 for place in group),
                ids=chosen,
                contrast=others,
                contrast_name=None if against is None else _written(model, others),
            )
        )
    if not targets:
        raise InputError(f"the continuation of text {encoding.index} has no {granularity.value} to explain")
    return ContinuationQuestion(model, encoding, tuple(targets))


def _groups(encoding: Encoding, first: int, granularity: Grain) -> Iterator[tuple[list[int], str]]:
    """Yield the places of each target's tokens, counted over all tokens, and its text."""
    places = range(first, len(encoding.special))
    if granularity in (Granularity.TOKEN, Granularity.ALL_TOKENS):
        for place in places:
            yield [place], _token_name(encoding, place)
        return
    elements = encoding.elements(granularity)
    for k in sorted({int(elements.of_token[place]) for place in places} - {-1}):
        yield [place for place in places if elements.of_token[place] == k], elements.names[k]


def _token_name(encoding: Encoding, place: int) -> str:
    if encoding.offsets is not None:
        start, end = encoding.offsets[place].tolist()
        if piece := encoding.text[start:end].strip():
            return piece
    return encoding.tokens[place]


def _written(model: TextModel, ids: tuple[int, ...]) -> str:
    return str(model.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)).strip() or str(ids)


def _as_long(ids: Ids, length: int, index: int) -> Ids:
    if len(ids) == 1:
        ids = np.repeat(ids, length)
    if len(ids) != length:
        raise InputError(
            f"the contrast of text {index} has {len(ids)} tokens and its target {length}; give as many, or one for all"
        )
    return ids
