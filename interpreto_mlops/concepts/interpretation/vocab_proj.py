"""What concepts say by their directions: the tokens, or the classes, that these point to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from interpreto_mlops.concepts.base import ConceptDictionary, check_integer
from interpreto_mlops.concepts.interpretation.base import (
    INTERPRETATIONS,
    Given,
    Interpretation,
    TokenNames,
    TokenScore,
    extremes,
    vocabulary_ids,
)
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.sites import HEAD, find_head, probe_inputs
from interpreto_mlops.models.splitting import Splitter, block_paths
from interpreto_mlops.models.text_model import TextModel

_PROBE = (2, 3)
_LOGITS = 2**24


@dataclass(frozen=True)
class VocabProjection:
    """The tokens, or classes, that one concept's direction points to.

    Arguments:
        concept: its number in the dictionary.
        top: those of the largest logits, largest first; none where the direction is zero.
        bottom: those of the smallest, smallest first.
        of: `tokens`, or `classes` of a classifier.
    """

    concept: int
    top: tuple[TokenScore, ...]
    bottom: tuple[TokenScore, ...]
    of: str = "tokens"

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists, for JSON."""
        return asdict(self)


@INTERPRETATIONS.register("vocab_proj")
@dataclass(frozen=True, kw_only=True)
class VocabProj(Interpretation[tuple[VocabProjection, ...]]):
    """Read each concept's direction as if it were what the last layer puts out.

    Of a language model: the logits that follow when the direction stands in place of the last block's output, that is
    unembed(final norm(direction)), with what else the model does to its logits. Where the dictionary's layer comes
    after the last block, the direction stands there instead. Of a classifier: what one unit of the code adds to each
    class's logit, which is said only where the dictionary's layer is what the linear head reads.

    Arguments:
        k: the most tokens or classes at each end.

    Returns:
        For each concept its `VocabProjection`.

    Raises:
        InputError: a model without an unembedding, a layer of another width than the last block's, or a classifier's
            layer that does not feed its linear head.

    Source: Gur-Arieh et al. 2025 (VocabProj), after the logit lens.
    """

    needs: ClassVar[tuple[str, ...]] = ("split",)

    k: int = 50

    def __post_init__(self) -> None:
        check_integer("k", self.k, 1)

    def interpret(self, given: Given) -> tuple[VocabProjection, ...]:
        """Project the directions; see the class."""
        split, path = given.place()
        if split.model.task in {"classification", "token_classification"}:
            return self._on_classes(given, split, path)
        return self._on_tokens(given, split, path)

    def _on_classes(self, given: Given, split: Splitter, path: str) -> tuple[VocabProjection, ...]:
        head = _head_of(split, path)
        units = unit_changes(given.dictionary, given.concepts)
        scores = (units.double() @ head.weight.detach().double().cpu().T).numpy()
        classes, ids = split.model.labels, np.arange(scores.shape[1])
        found = list[VocabProjection]()
        for concept, row in zip(given.concepts, scores, strict=True):
            top, bottom = extremes(row, ids, self.k) if row.any() else ([], [])
            up, down = ([TokenScore(classes[each], each, score) for each, score in end] for end in (top, bottom))
            found.append(VocabProjection(concept, tuple(up), tuple(down), "classes"))
        return tuple(found)

    def _on_tokens(self, given: Given, split: Splitter, path: str) -> tuple[VocabProjection, ...]:
        model, names, found = split.model, TokenNames(split.model), list[VocabProjection]()
        lens, where = _lens(model, path, given.dictionary.width)
        directions = given.dictionary.dictionary[list(given.concepts)].float()
        ids = vocabulary_ids(model)
        ids = ids[ids < model.vocabulary]
        size = max(1, _LOGITS // model.vocabulary)
        for start in range(0, len(directions), size):
            part = directions[start : start + size]
            logits = _logits(lens, where, part)[:, torch.from_numpy(ids)].double().numpy()
            for concept, direction, row in zip(given.concepts[start:], part, logits, strict=False):
                top, bottom = extremes(row, ids, self.k) if bool(direction.any()) else ([], [])
                found.append(VocabProjection(concept, names.scores(top), names.scores(bottom)))
        return tuple(found)


def unit_changes(dictionary: ConceptDictionary, concepts: Sequence[int]) -> torch.Tensor:
    """Return what one unit of each concept's code adds to a row, shape (concepts, width)."""
    found, size = list[torch.Tensor](), max(1, 2**22 // dictionary.n_concepts)
    for start in range(0, len(concepts), size):
        part = torch.as_tensor(concepts[start : start + size])
        units = torch.nn.functional.one_hot(part, dictionary.n_concepts).float()
        found.append(dictionary.decode(units) - dictionary.decode(torch.zeros_like(units)))
    return torch.cat(found) if found else torch.empty(0, dictionary.width)


def _head_of(split: Splitter, path: str) -> torch.nn.Linear:
    """Return the linear head of a classifier, if the split point is what it reads."""
    head = find_head(split.model)
    feeds = path == head.name
    if not feeds and isinstance(head.module, torch.nn.Linear) and split.widths[path] == head.module.in_features:
        captured = Splitter(split.model, [HEAD, path]).capture(probe_inputs(split.model, *_PROBE))
        feeds = captured[path].shape == captured[head.name].shape and torch.equal(captured[path], captured[head.name])
    if not feeds or not isinstance(head.module, torch.nn.Linear):
        raise InputError(
            f"the layer {path!r} is not what the linear head {head.path!r} of {split.model.name!r} reads, so a "
            "direction there has no fixed part in the class logits; split the model at 'head', or take "
            "concept_importance"
        )
    return head.module


def _lens(model: TextModel, path: str, width: int) -> tuple[Splitter, str]:
    """Return the model split at its last block, or at the dictionary's layer where that comes later."""
    if model.model.config.is_encoder_decoder or model.model.get_output_embeddings() is None:
        raise InputError(
            f"the model {model.name!r} has no unembedding that its layers' directions could be read with; "
            "take a decoder that writes, or a masked language model"
        )
    last = block_paths(model)[-1]
    lens = Splitter(model, [last] if path == last else [last, path])
    where = lens.split_points[-1] if lens.split_points[-1] == path else last
    if lens.widths[where] != width:
        raise InputError(
            f"the directions of the layer {path!r} have width {width}, and the last block {last!r} puts out "
            f"{lens.widths[last]}; take a layer of the residual stream"
        )
    return lens, where


def _logits(lens: Splitter, where: str, directions: torch.Tensor) -> torch.Tensor:
    """Return the logits of each direction, in a text of one token, shape (directions, vocabulary)."""

    def put_in(output: torch.Tensor) -> torch.Tensor:
        changed = output.clone()
        changed[:, 0] = directions.to(output.device, output.dtype)
        return changed

    ids = torch.full((len(directions), 1), lens.model.fill_id, dtype=torch.int64)
    with torch.inference_mode():
        output = lens.outputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {where: put_in})
    logits: torch.Tensor = output.logits[:, 0].float().cpu()
    return logits
