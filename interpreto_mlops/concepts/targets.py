"""Concepts as targets of attributions: which words of a text make a concept as strong as it is there."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.belonging import place_of
from interpreto_mlops.concepts.row_plans import RowPlan, aggregate, plan_rows
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.layer_targets import LayerTargets
from interpreto_mlops.models.objectives import Target
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.text.granularity import NO_ELEMENT

AGGREGATIONS = ("max", "mean", "sum")
"""How the codes of a text's rows become one number."""

Element = int | tuple[int, int]

_SPECIAL_ROWS = ("all_tokens", "cls")


def concept_targets(
    split: Splitter,
    dictionary: ConceptDictionary,
    concepts: int | Iterable[int],
    *,
    layer: int | str | None = None,
    aggregation: str = "max",
    element: Element | None = None,
    allow_mismatch: bool = False,
) -> ConceptTargets:
    """Return what makes an attribution method explain concepts: give it as the `targets` of the call.

    A text's activation of a concept is made of the codes of its rows, which are those that the dictionary was fitted
    on (tokens, words, …); a text without rows has 0. The model runs no further than the layer. Gradients go through the
    dictionary's encoder where that has one (`ConceptDictionary.differentiable`).

    Arguments:
        split: the model that is explained, split at the dictionary's layer.
        dictionary: fitted.
        concepts: the numbers of the concepts to explain; each is a target, named by its label.
        layer: the split point; None takes the dictionary's own layer, or the only split point.
        aggregation: over the rows of a text: `max` (how strong the concept gets), `mean` or `sum`.
        element: explain the code of this row alone: its number in the text, negative ones from the end, or the
            characters (start, end) that it overlaps.
        allow_mismatch: take a dictionary of another model or layer all the same.

    Raises:
        InputError: concepts that there are not, none, or one twice; or an element that is no place.
        UnknownNameError: another aggregation, or the model is not split at that layer.
        IntegrityError: the dictionary was fitted on another model or layer.
        NotFittedError: the dictionary is not fitted.

    Example:
        Occlusion(model)(texts, targets=concept_targets(split, dictionary, [3, 17]))
    """
    path = place_of(split, dictionary, layer, allow_mismatch=allow_mismatch)
    if aggregation not in AGGREGATIONS:
        raise UnknownNameError("aggregation over rows", aggregation, AGGREGATIONS)
    numbers = _numbers(_listed(concepts), dictionary)
    _check_element(element)
    return ConceptTargets(split, dictionary, numbers, path, aggregation, element)


class ConceptTargets(LayerTargets):
    """Concepts of a dictionary at a layer; `concept_targets` makes and checks them.

    Arguments:
        split: the split model.
        dictionary: fitted.
        concepts: their numbers.
        path: the split point.
        aggregation: one of `AGGREGATIONS`.
        element: one row alone, or None for all.
    """

    def __init__(
        self,
        split: Splitter,
        dictionary: ConceptDictionary,
        concepts: Sequence[int],
        path: str,
        aggregation: str,
        element: Element | None,
    ) -> None:
        self.dictionary, self.concepts = dictionary, tuple(concepts)
        self.aggregation, self.element = aggregation, element
        made = dictionary.provenance
        self.granularity = "sample" if path in split.per_text else str(made.get("granularity") or "token")
        self.row_aggregation = str(made.get("aggregation") or "mean")
        record = {
            "layer": path,
            "dictionary": dictionary.name,
            "dictionary_sha256": _digest(dictionary),
            "concepts": list(self.concepts),
            "concept_rows": self.granularity,
            "concept_aggregation": aggregation if element is None else f"element {element}",
        }
        key = json.dumps([record, self.row_aggregation])
        targets = [
            Target(number, name, layer=path)
            for number, name in zip(self.concepts, _names(dictionary, self.concepts), strict=True)
        ]
        super().__init__(split, path, targets, key, record)

    @property
    def without_gradient(self) -> str | None:
        """Why the codes have no gradient, or None where they have one."""
        if self.dictionary.differentiable:
            return None
        return (
            f"the codes of a {self.dictionary.name} dictionary have no gradient by the activations; take a method that "
            "perturbs the text, such as occlusion, kernel_shap or lime"
        )

    @property
    def numbers_a_token(self) -> int:
        """A code for each concept of the dictionary."""
        return self.dictionary.n_concepts

    def of_token(self, encoding: Encoding) -> Ids:
        """Return the row that each token is part of, shape (tokens,); of one element alone its own.

        Raises:
            InputError: the text has no such element.
        """
        if self.path in self.split.per_text:
            return np.zeros(len(encoding), dtype=np.int64)
        plan = plan_rows(encoding, self.granularity)
        of_token = plan.of_token[: len(encoding)]
        if self.element is None:
            return of_token
        return np.where(np.isin(of_token, self._chosen(plan)), of_token, NO_ELEMENT)

    def left(self, of_token: Ids, kept: npt.NDArray[np.bool_]) -> Ids:
        """Return the rows of a text of which only some tokens are left.

        Raises:
            InputError: the one element that is explained is taken out.
        """
        rest = of_token[kept]
        if self.element is not None and not (rest != NO_ELEMENT).any():
            raise InputError(
                f"replacement 'remove' takes out the element {self.element!r} whose concept is explained; give a token "
                "id, or leave `element` out"
            )
        if self.path in self.split.per_text:
            return np.zeros(max(1, len(rest)), dtype=np.int64)
        if len(rest) == 0:
            # The token that stands for an empty text is a special one.
            return np.asarray([0 if self.granularity in _SPECIAL_ROWS else NO_ELEMENT])
        if self.granularity == "cls":
            return np.where(np.arange(len(rest)) == 0, 0, NO_ELEMENT)
        return rest

    def scores(self, output: torch.Tensor, of_token: Sequence[Ids]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the concepts' activations, and the row where each is strongest, shape (texts, concepts) each."""
        text_of, row_of, rows = self._rows(output, of_token)
        codes = self._codes(rows).to(output.device)
        most = max(1, int(np.bincount(text_of, minlength=1).max())) if len(text_of) else 1
        shape = (len(of_token), most, len(self.concepts))
        # The place of each row in its text, for texts of few rows are padded.
        place = np.arange(len(text_of)) - np.searchsorted(text_of, text_of)
        at = (torch.from_numpy(text_of).to(codes.device), torch.from_numpy(place).to(codes.device))
        table = codes.new_full(shape, -torch.inf).index_put(at, codes)
        numbers = torch.full(shape[:2], NO_ELEMENT, device=codes.device).index_put(
            at, torch.from_numpy(row_of).to(codes.device)
        )
        best = table.argmax(dim=1)
        strongest = numbers.gather(1, best)
        if self.aggregation == "max":
            found = table.gather(1, best[:, None])[:, 0]
            return torch.where(strongest == NO_ELEMENT, 0.0, found), strongest
        there = (numbers != NO_ELEMENT)[..., None]
        total = torch.where(there, table, 0.0).sum(dim=1)
        if self.aggregation == "mean":
            total = total / there.sum(dim=1).clamp(min=1)
        return total, strongest if self.element is not None else torch.full_like(strongest, NO_ELEMENT)

    def _codes(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the concepts' codes, shape (rows, concepts): NaN, which the engine refuses, of rows not finite."""
        if not len(rows):
            return rows.new_zeros(0, len(self.concepts))
        codes = self.dictionary.differentiable_codes(rows.cpu())[:, list(self.concepts)]
        return torch.where(rows.isfinite().all(dim=1, keepdim=True).cpu(), codes, torch.nan)

    def targets_of(self, encoding: Encoding) -> tuple[Target, ...]:
        """Return the targets in one text; those of an element are named after it."""
        if self.element is None:
            return self.targets
        plan = plan_rows(encoding, self.granularity)
        chosen = self._chosen(plan)
        start, end = int(plan.spans[chosen, 0].min()), int(plan.spans[chosen, 1].max())
        places = tuple(np.flatnonzero(np.isin(plan.of_token[: len(encoding)], chosen)).tolist())
        # A special token has no characters.
        what = encoding.text[start:end] or encoding.tokens[places[0]]
        return tuple(replace(each, name=f"{what}: {each.name}", positions=places) for each in self.targets)

    def _chosen(self, plan: RowPlan) -> npt.NDArray[np.int64]:
        """Return the rows that are explained."""
        n, index = len(plan), plan.encoding.index
        if isinstance(self.element, tuple):
            start, end = self.element
            chosen = np.flatnonzero((plan.spans[:, 0] < end) & (start < plan.spans[:, 1]))
            if not len(chosen):
                raise InputError(f"no {self.granularity} of text {index} lies in the characters {start} to {end}")
            return chosen
        assert self.element is not None
        if not -n <= self.element < n:
            raise InputError(f"text {index} has no {self.granularity} {self.element}; it has {n}")
        return np.asarray([self.element % n])

    def _rows(
        self, output: torch.Tensor, of_token: Sequence[Ids]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], torch.Tensor]:
        """Return the text and the number of each row, and the rows, shape (rows, width), float32."""
        if output.dim() == 2:
            every = np.arange(len(of_token))
            return every, np.zeros_like(every), output.float()
        lengths = [len(each) for each in of_token]
        texts = np.repeat(np.arange(len(of_token)), lengths)
        places = np.concatenate([np.arange(length) for length in lengths])
        numbers = np.concatenate(of_token)
        kept = np.flatnonzero(numbers != NO_ELEMENT)
        # Tokens of a row need not stand side by side.
        kept = kept[np.lexsort((places[kept], numbers[kept], texts[kept]))]
        source = torch.from_numpy(texts[kept] * output.shape[1] + places[kept]).to(output.device)
        tokens = output.flatten(0, 1).index_select(0, source).float()
        rows, counts = np.unique(np.stack([texts[kept], numbers[kept]]), axis=1, return_counts=True)
        lengths_of_rows = torch.from_numpy(counts).to(output.device)
        made = aggregate(tokens, lengths_of_rows, self.row_aggregation) if len(counts) else tokens
        return rows[0].astype(np.int64), rows[1].astype(np.int64), made


def _listed(concepts: Any) -> list[Any]:
    # Arrays and tensors without a dimension say that they are iterable.
    alone = isinstance(concepts, str) or not isinstance(concepts, Iterable) or getattr(concepts, "ndim", 1) == 0
    return [concepts] if alone else list(concepts)


def _numbers(concepts: list[Any], dictionary: ConceptDictionary) -> list[int]:
    for concept in concepts:
        if isinstance(concept, bool) or not hasattr(concept, "__index__"):
            raise InputError(f"a concept is given by its number, not by {concept!r}")
        if not 0 <= concept < dictionary.n_concepts:
            raise InputError(f"there is no concept {concept!r}; the dictionary has 0 to {dictionary.n_concepts - 1}")
    numbers = [int(concept) for concept in concepts]
    if not numbers:
        raise InputError("give at least one concept")
    if twice := [number for number, count in Counter(numbers).items() if count > 1]:
        raise InputError(f"the concept {twice[0]} is given twice")
    return numbers


def _check_element(element: Any) -> None:
    parts = element if isinstance(element, tuple) and len(element) == 2 else (element,)
    if element is not None and any(isinstance(part, bool) or not isinstance(part, int) for part in parts):
        raise InputError(f"an element is given by its number or by its characters (start, end), not by {element!r}")


def _names(dictionary: ConceptDictionary, concepts: Sequence[int]) -> list[str]:
    """Return the label of each concept, with its number where it has none or another one has the same."""
    labels = {each.concept: each.label for each in dictionary.descriptions or () if each.words or each.given}
    names = [labels.get(number, f"concept {number}") for number in concepts]
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name} (concept {number})" for name, number in zip(names, concepts, strict=True)
    ]


def _digest(dictionary: ConceptDictionary) -> str:
    """Return a digest of all that decides codes: family, parameters and weights."""
    digest = hashlib.sha256(json.dumps([dictionary.name, dictionary.parameters], sort_keys=True, default=str).encode())
    for name, tensor in sorted(dictionary.weights.items()):
        digest.update(f"{name}:{tuple(tensor.shape)}:".encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]
