"""How much each concept speaks for each class: gradient times activation."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from tqdm.auto import tqdm

from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.row_plans import RowPlan, plan_rows
from interpreto_mlops.errors import InputError, IntegrityError, ModelOutputError
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.packing import pack
from interpreto_mlops.models.requests import ClassLogits
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.granularity import NO_ELEMENT

Floats = npt.NDArray[np.float64]

# Texts of like length meet in windows of this many batches' tokens.
_WINDOW_BATCHES = 16


@dataclass(frozen=True)
class ConceptImportance:
    """How much each concept speaks for (or, negative, against) each class.

    Arguments:
        classes: the names of the classes, by id.
        values: mean over the texts predicted as the class of Σ code × d logit / d code over the text's rows, shape
            (classes, concepts); a row of NaN for a class that no text is predicted as.
        n_texts: how many texts are predicted as each class.
    """

    classes: tuple[str, ...]
    values: Floats
    n_texts: tuple[int, ...]

    @property
    def normalised(self) -> Floats:
        """The values as shares, Σ |share| = 1 in each class, shape (classes, concepts); 0 where all values are 0."""
        totals = np.abs(self.values).sum(axis=1, keepdims=True)
        return np.asarray(self.values / np.where(totals == 0, 1.0, totals))

    def top(self, class_index: int, k: int) -> tuple[int, ...]:
        """Return the concepts of the largest |importance| for a class, best first; none for a class without texts."""
        if self.n_texts[class_index] == 0:
            return ()
        return tuple(np.argsort(-np.abs(self.values[class_index]), kind="stable")[:k].tolist())

    def to_frame(self) -> pd.DataFrame:
        """Return a frame with the columns `class`, `concept`, `importance` and `share`, one row for each pair."""
        n_classes, n_concepts = self.values.shape
        return pd.DataFrame(
            {
                "class": np.repeat(np.asarray(self.classes, dtype=object), n_concepts),
                "concept": np.tile(np.arange(n_concepts), n_classes),
                "importance": self.values.ravel(),
                "share": self.normalised.ravel(),
            }
        )


def concept_importance(
    split: Splitter,
    dictionary: ConceptDictionary,
    texts: Iterable[str] | TextDataset,
    *,
    layer: int | str | None = None,
    token_budget: int = 2048,
    progress: bool | None = None,
) -> ConceptImportance:
    """Attribute a classifier's logits to concepts by gradient × code, and average over the texts of each class.

    An activation is the dictionary's reconstruction plus a residual, which is kept: a = decode(z) + (a − decode(z)).
    What is explained is therefore the model itself. The rows are those that the dictionary was fitted on (its
    granularity): where a row is the mean of several tokens, its concepts are taken to move all of them.

    Arguments:
        split: a classifier, split at the dictionary's layer.
        dictionary: fitted.
        texts: the texts; a generator is read as it goes.
        layer: the split point; None takes the dictionary's own layer, or the only split point.
        token_budget: the most tokens of a batch, padding included; it changes nothing but speed.
        progress: show a bar; None shows it on a terminal only.

    Returns:
        The importance of each concept for each class, and how many texts were predicted as it.

    Warns:
        UserWarning: no row reaches the logits, as tokens do not at the last layer of a model that pools its first.

    Raises:
        InputError: the model is no classifier, or it is not split at the dictionary's layer, or the widths differ.
        IntegrityError: the dictionary was fitted on another model.
        ModelOutputError: the model puts out NaN or infinity.

    Source: Fel et al. 2023 (a holistic approach to concepts), gradient × input in the concept space.
    """
    path = _layer_of(split, dictionary, layer)
    model = split.model
    sums = np.zeros((len(model.labels), dictionary.n_concepts))
    counts = np.zeros(len(model.labels), dtype=np.int64)
    granularity = str(dictionary.provenance.get("granularity", "token"))
    source = texts.texts if isinstance(texts, TextDataset) else texts
    total = len(source) if isinstance(source, Sequence) else None
    quiet = None if progress is None else not progress
    with tqdm(total=total, desc="concept importance", unit="text", disable=quiet) as bar:
        for window in _windows(model.encode(source), token_budget * _WINDOW_BATCHES):
            plans = [plan_rows(encoding, granularity) for encoding in window if len(encoding)]
            for places in pack([len(plan.encoding) for plan in plans], token_budget):
                predicted, values = _batch_importance(split, path, dictionary, [plans[i] for i in places])
                np.add.at(sums, predicted, values)
                counts += np.bincount(predicted, minlength=len(counts))
            bar.update(len(window))
    if counts.any() and not sums.any():
        message = f"the logits do not depend on the {granularity!r} rows of {path!r}: all importances are 0"
        warnings.warn(f"{message}; take an earlier layer, or the granularity 'cls' at the last one", stacklevel=2)
    # A class without texts has no mean; a number would look like a finding.
    values = np.full_like(sums, np.nan)
    np.divide(sums, counts[:, None], out=values, where=counts[:, None] > 0)
    return ConceptImportance(model.labels, values, tuple(counts.tolist()))


def _layer_of(split: Splitter, dictionary: ConceptDictionary, layer: int | str | None) -> str:
    own = dictionary.provenance.get("layer")
    if layer is not None:
        path = split.path(layer)
    elif own is None and len(split.split_points) == 1:
        path = split.split_points[0]
    elif own in split.split_points:
        path = str(own)
    else:
        raise InputError(
            f"the dictionary belongs to the layer {own!r}, and the model is split at {list(split.split_points)}"
        )
    if split.widths[path] != dictionary.width:
        raise InputError(f"the layer {path!r} has width {split.widths[path]}, and the dictionary {dictionary.width}")
    fitted_on: dict[str, Any] = dictionary.provenance.get("model") or {}
    expected = fitted_on.get("fingerprint")
    if expected is not None and expected != split.model.fingerprint:
        raise IntegrityError(
            f"the dictionary was fitted on another model than {split.model.name!r}: {fitted_on.get('name')!r}"
        )
    return path


def _windows(encodings: Iterable[Encoding], tokens: int) -> Iterator[list[Encoding]]:
    window: list[Encoding] = []
    held = 0
    for encoding in encodings:
        window.append(encoding)
        held += len(encoding)
        if held >= tokens:
            yield window
            window, held = [], 0
    if window:
        yield window


def _batch_importance(
    split: Splitter, path: str, dictionary: ConceptDictionary, plans: list[RowPlan]
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Return the predicted class of each text, shape (texts,), and its importances, shape (texts, concepts)."""
    inputs = split.model.inputs([plan.encoding for plan in plans])
    predicted = _predict(split, inputs, plans)
    outputs, _, gradients = split.output_gradients(inputs, path, predicted)
    rows, of_rows, text_of_row = _rows(outputs, gradients[:, 0], plans)
    codes = dictionary.encode(rows)
    products = codes.double() * dictionary.gradient(codes, of_rows).double()
    values = torch.zeros(len(plans), dictionary.n_concepts, dtype=torch.float64)
    values.index_add_(0, text_of_row, products)
    return predicted.cpu().numpy(), values.numpy()


def _predict(split: Splitter, inputs: dict[str, torch.Tensor], plans: list[RowPlan]) -> torch.Tensor:
    with split.model.evaluating(), torch.inference_mode():
        batch = split.model.with_positions(inputs)
        logits = ClassLogits.read(split.model, batch, [ClassLogits()] * len(plans))
    finite = logits.isfinite().all(dim=1)
    if not bool(finite.all()):
        encoding = plans[int(finite.int().argmin())].encoding
        raise ModelOutputError(f"the model gives NaN or infinity for text {encoding.index}: {encoding.text[:60]!r}")
    return logits.argmax(dim=1).clone()


def _rows(
    outputs: torch.Tensor, gradients: torch.Tensor, plans: list[RowPlan]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gather tokens into rows: the mean of their outputs and the sum of their gradients.

    Returns:
        Rows and gradients, shape (rows, width), and the text of each row, shape (rows,).
    """
    starts = np.cumsum([0, *map(len, plans)])
    tokens = [np.flatnonzero(plan.of_token != NO_ELEMENT) for plan in plans]
    texts = torch.from_numpy(np.repeat(np.arange(len(plans)), [len(places) for places in tokens]))
    places = torch.from_numpy(np.concatenate(tokens))
    row = torch.from_numpy(
        np.concatenate([start + plan.of_token[kept] for start, plan, kept in zip(starts, plans, tokens, strict=False)])
    )
    total = int(starts[-1])
    width = outputs.shape[-1]
    kept_outputs, kept_gradients = (t.cpu()[texts, places].float() for t in (outputs, gradients))
    sizes = torch.bincount(row, minlength=total).clamp(min=1).unsqueeze(1)
    rows = torch.zeros(total, width).index_add_(0, row, kept_outputs) / sizes
    of_rows = torch.zeros(total, width).index_add_(0, row, kept_gradients)
    return rows, of_rows, torch.from_numpy(np.repeat(np.arange(len(plans)), [len(plan) for plan in plans]))
