"""A dictionary as MLflow serves it: codes of activations, or of texts through the model that it belongs to."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from interpreto_mlops.concepts.base import ConceptDictionary, check_integer
from interpreto_mlops.concepts.split import ModelWithSplitPoints
from interpreto_mlops.errors import DataError, InputError, IntegrityError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking.loading import load_model

POOLINGS = ("max", "mean")
"""How the codes of a text's rows become one code; the first is the default."""

# Held while the base model is loaded; a lock of its own would keep the wrapper from being copied to other processes.
_LOADING = threading.Lock()


class DictionaryModel:
    """What `mlflow.pyfunc` wraps.

    Arguments:
        dictionary: fitted.
        base_model: another address of the base model than its pinned one; it must be of the same content. It is loaded
            when the first texts come.
    """

    def __init__(self, dictionary: ConceptDictionary, base_model: str | None = None) -> None:
        self.dictionary = dictionary
        self.base_model = base_model
        self._split: ModelWithSplitPoints | None = None

    def get_raw_model(self) -> ConceptDictionary:
        """Return the dictionary."""
        return self.dictionary

    def predict(
        self, model_input: pd.DataFrame | npt.NDArray[Any], params: Mapping[str, Any] | None = None
    ) -> npt.NDArray[np.float32] | pd.DataFrame:
        """Return the codes of each row, shape (n, n_concepts), or with `top_k` the strongest concepts of each.

        Arguments:
            model_input: a frame with a column `activations` or `text`; where both are filled, `activations` counts. Or
                activations alone, shape (n, width).
            params: `pooling`, one of `POOLINGS`: how the codes of a text's rows become one. `top_k`: instead of all
                codes a frame with the columns `concept`, `activation` and `label`, each a list of the so many concepts
                whose codes are largest without their sign, best first, those of code 0 left out; 0 for all codes.

        Raises:
            InputError: a row with neither, activations of another width, or another parameter.
            ModelLoadError: the base model is not there.
            IntegrityError: the base model is not the one that the dictionary was made from.
        """
        given = dict(params or {})
        pooling, top_k = str(given.get("pooling", POOLINGS[0])), given.get("top_k", 0)
        if pooling not in POOLINGS:
            raise UnknownNameError("pooling", pooling, POOLINGS)
        check_integer("top_k", top_k.item() if isinstance(top_k, np.integer) else top_k, 0)
        codes = self._codes(model_input, pooling)
        return self._strongest(codes, int(top_k)) if top_k else codes

    def _codes(self, model_input: pd.DataFrame | npt.NDArray[Any], pooling: str) -> npt.NDArray[np.float32]:
        if not isinstance(model_input, pd.DataFrame):
            return self._encode(np.asarray(model_input))
        if not {"text", "activations"} & set(model_input.columns):
            raise InputError(
                "the input has neither a column `text` nor a column `activations`; an array is taken by a model that "
                "was saved with the signature of `dictionary_flavor.array_signature`"
            )
        codes = np.zeros((len(model_input), self.dictionary.n_concepts), dtype=np.float32)
        rows, texts = _filled(model_input, "activations"), _filled(model_input, "text")
        missing = ~(rows | texts)
        if missing.any():
            raise InputError(f"row {int(missing.argmax())} has neither `text` nor `activations`")
        if rows.any():
            codes[rows] = self._encode(_stack(model_input["activations"][rows], self.dictionary.width))
        texts &= ~rows
        if texts.any():
            codes[texts] = self._encode_texts([str(text) for text in model_input["text"][texts]], pooling)
        return codes

    def _strongest(self, codes: npt.NDArray[np.float32], top_k: int) -> pd.DataFrame:
        labels = {each.concept: each.label for each in self.dictionary.descriptions or []}
        order = np.argsort(-np.abs(codes), axis=1, kind="stable")[:, :top_k]
        found = [[int(concept) for concept in row if codes[place, concept] != 0] for place, row in enumerate(order)]
        columns = {
            "concept": found,
            "activation": [[float(codes[place, each]) for each in row] for place, row in enumerate(found)],
            "label": [[labels.get(each, "") for each in row] for row in found],
        }
        return pd.DataFrame(columns, columns=list(columns))

    def _encode(self, rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return self.dictionary.encode(rows.astype(np.float32)).numpy()

    def _encode_texts(self, texts: Sequence[str], pooling: str) -> npt.NDArray[np.float32]:
        split = self._splitter()
        said = self.dictionary.provenance
        rows = {"granularity": said["granularity"], "aggregation": said.get("aggregation") or "mean"}
        try:
            (activations,) = split.get_activations(texts, progress=False, **rows).values()
        except DataError:
            # Texts without any token hold no concept.
            return np.zeros((len(texts), self.dictionary.n_concepts), dtype=np.float32)
        chunks = (codes for _, codes in self.dictionary.encode_chunks(activations))
        return _pool(chunks, activations.text_ids, len(texts), self.dictionary.n_concepts, pooling)

    def _splitter(self) -> ModelWithSplitPoints:
        with _LOADING:
            if self._split is None:
                self._split = ModelWithSplitPoints(self._base_model(), [self.dictionary.provenance["layer"]])
            return self._split

    def _base_model(self) -> TextModel:
        named = self.dictionary.provenance.get("model") or {}
        if not named.get("uri") or not named.get("fingerprint"):
            raise InputError("this dictionary does not say which model it belongs to; give `activations`, not `text`")
        harvest = self.dictionary.provenance.get("harvest") or {}
        options = {"dtype": named.get("dtype"), "autocast": harvest.get("autocast")}
        address = self.base_model or str(named["uri"])
        model = load_model(address, **{name: value for name, value in options.items() if value is not None})
        if model.fingerprint != named["fingerprint"]:
            raise IntegrityError(
                f"the model at {address!r} is not the one that the dictionary was made from: its fingerprint is "
                f"{model.fingerprint[:12]}…, not {named['fingerprint'][:12]}…"
            )
        return model


def _filled(frame: pd.DataFrame, column: str) -> npt.NDArray[np.bool_]:
    if column not in frame.columns:
        return np.zeros(len(frame), dtype=bool)
    return np.asarray([isinstance(value, str | list | tuple | np.ndarray) for value in frame[column]], dtype=bool)


def _stack(rows: pd.Series[Any], width: int) -> npt.NDArray[np.float32]:
    for place, row in zip(rows.index, rows, strict=True):
        if np.ndim(row) != 1 or len(row) != width:
            raise InputError(f"the activations of row {place} have the shape {np.shape(row)}, not ({width},)")
    return np.asarray(rows.tolist(), dtype=np.float32)


def _pool(
    chunks: Iterator[torch.Tensor], text_ids: npt.NDArray[np.int64], n_texts: int, n_concepts: int, pooling: str
) -> npt.NDArray[np.float32]:
    """Return one code a text, shape (texts, n_concepts); zeros for a text without rows."""
    pooled = torch.zeros(n_texts, n_concepts)
    owners = torch.from_numpy(np.asarray(text_ids))
    counts = torch.bincount(owners, minlength=n_texts).unsqueeze(1)
    if pooling == "max":
        pooled.masked_fill_(counts > 0, -torch.inf)
    place = 0
    for codes in chunks:
        index = owners[place : place + len(codes)].unsqueeze(1).expand_as(codes)
        place += len(codes)
        pooled.scatter_reduce_(0, index, codes, "amax" if pooling == "max" else "sum")
    if pooling == "mean":
        pooled /= counts.clamp(min=1)
    return pooled.numpy()
