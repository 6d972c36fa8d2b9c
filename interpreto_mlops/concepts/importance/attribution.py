"""Importance of concepts for texts, one by one, and for classes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from interpreto_mlops.concepts.base import ConceptDictionary, check_integer
from interpreto_mlops.concepts.belonging import place_of
from interpreto_mlops.concepts.importance.base import IMPORTANCE, ImportanceMethod, LocalImportance
from interpreto_mlops.concepts.importance.frame import Frame
from interpreto_mlops.concepts.importance.results import ConceptImportance
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.objectives import InferenceMode, check_mode
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.targets import check_texts, questions
from interpreto_mlops.text.datasets import TextDataset

_CONTINUATION = "continuation"


def local_importance(
    split: Splitter,
    dictionary: ConceptDictionary,
    texts: Iterable[Any] | TextDataset,
    *,
    method: str | ImportanceMethod = "gradient_x_activation",
    targets: Any = None,
    contrast: Any = None,
    generation: Mapping[str, Any] | None = None,
    truncation: bool = False,
    inference_mode: str = "logits",
    keep_error: bool = True,
    layer: int | str | None = None,
    token_budget: int = 2048,
    seed: int = 0,
    allow_mismatch: bool = False,
) -> Iterator[LocalImportance]:
    """Say for each text how much each concept matters to its targets; texts without a token are left out.

    An activation is the dictionary's reconstruction plus a residual, which is kept: a(z) = a + decode(z) − decode(z of
    the text). What is explained is therefore the model itself. The rows are those that the dictionary was fitted on
    (its granularity): where a row is the mean of several tokens, its concepts move all of them; for a sum each by its
    share, for the first or last token that one.

    Arguments:
        split: a classifier of sequences or tokens, or a language model, split at the dictionary's layer.
        dictionary: fitted.
        texts: the texts; a generator is read as it goes.
        method: a name of `IMPORTANCE`, or a method with its parameters.
        targets: what is explained, as for attributions: None for what the model itself says; classes; continuations.
        contrast: what the targets are explained against.
        generation: arguments of a language model's own generation.
        truncation: whether a prompt that is too long is cut on the left.
        inference_mode: the space in which scores are read: `logits`, `softmax`, `log_softmax`.
        keep_error: False puts the reconstruction alone in the layer's place, so that it is explained instead.
        layer: the split point; None takes the dictionary's own layer, or the only split point.
        token_budget: the most tokens of a batch, padding included; it changes nothing but speed.
        seed: of random draws.
        allow_mismatch: take a dictionary of another model all the same.

    Yields:
        One result for each text, in order.

    Raises:
        InputError: what the model cannot be asked, or a layer at which it is not split, or the widths differ.
        IntegrityError: the dictionary was fitted on another model.
        ModelOutputError: the model puts out NaN or infinity.
    """
    path = place_of(split, dictionary, layer, allow_mismatch=allow_mismatch)
    check_integer("token_budget", token_budget, 1)
    mode = InferenceMode.parse(inference_mode)
    check_mode(split.model, mode)
    if split.model.task == "encoder":
        raise InputError(f"the model {split.model.name!r} is not a classifier, so it has no class logits")
    source = texts.texts if isinstance(texts, TextDataset) else texts
    check_texts(source)
    chosen = IMPORTANCE.get(method)() if isinstance(method, str) else method
    frame = Frame(
        split, dictionary, path, mode=mode, keep_error=keep_error, token_budget=token_budget, seed=seed
    )  # fmt: skip
    asked = questions(
        split.model, source, targets, contrast=contrast, generation=generation or {}, truncation=truncation
    )
    return frame.run(chosen, asked)


def concept_importance(
    split: Splitter,
    dictionary: ConceptDictionary,
    texts: Iterable[Any] | TextDataset,
    *,
    method: str | ImportanceMethod = "gradient_x_activation",
    progress: bool | None = None,
    **options: Any,
) -> ConceptImportance:
    """Average the importance of concepts in texts over all targets of each class.

    Arguments:
        split: as for `local_importance`.
        dictionary: fitted.
        texts: the texts; a generator is read as it goes.
        method: a name of `IMPORTANCE`, or a method with its parameters.
        progress: show a bar; None shows it on a terminal only.
        options: the other arguments of `local_importance`.

    Returns:
        The importance of each concept for each class, and how many targets are of it. Without `targets` a text's class
        is the predicted one.

    Warns:
        UserWarning: no row reaches the scores, as tokens do not at the last layer of a model that pools its first.

    Raises:
        InputError, IntegrityError, ModelOutputError: as `local_importance`.
    """
    source = texts.texts if isinstance(texts, TextDataset) else texts
    found = local_importance(split, dictionary, source, method=method, **options)
    generates = split.model.task == "generation"
    classes = (_CONTINUATION,) if generates else split.model.labels
    sums = np.zeros((len(classes), dictionary.n_concepts))
    counts = np.zeros(len(classes), dtype=np.int64)
    total = len(source) if isinstance(source, Sequence) else None
    quiet = None if progress is None else not progress
    with tqdm(total=total, desc="concept importance", unit="text", disable=quiet) as bar:
        for local in found:
            places = [0 if generates else target.id for target in local.targets]
            np.add.at(sums, places, local.totals)
            counts += np.bincount(places, minlength=len(counts))
            bar.update(1)
    if counts.any() and not sums.any():
        place = place_of(split, dictionary, options.get("layer"), allow_mismatch=True)
        rows = dictionary.provenance.get("granularity", "token")
        message = f"the scores do not depend on the {rows!r} rows of {place!r}: all importances are 0"
        warnings.warn(f"{message}; take an earlier layer, or the granularity 'cls' at the last one", stacklevel=2)
    # A class without texts has no mean; a number would look like a finding.
    values = np.full_like(sums, np.nan)
    np.divide(sums, counts[:, None], out=values, where=counts[:, None] > 0)
    name = method if isinstance(method, str) else method.name
    return ConceptImportance(classes, values, tuple(counts.tolist()), name)
