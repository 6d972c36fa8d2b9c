"""What concepts do to a language model's next token, when they are turned up and down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.concepts.base import check_integer, check_number
from interpreto_mlops.concepts.interpretation.base import (
    INTERPRETATIONS,
    Given,
    Interpretation,
    TokenNames,
    TokenScore,
    extremes,
    vocabulary_ids,
)
from interpreto_mlops.concepts.interpretation.vocabulary import ordinary_ids, template
from interpreto_mlops.concepts.interventions import changed_codes
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.hiding import hidden

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_MODES = ("set", "add")
_ONE_TOKEN = ("token", "all_tokens", "cls")
_LOGITS = 2**26


@dataclass(frozen=True)
class TokenEffects:
    """What turning one concept up and down does to the next token.

    Arguments:
        concept: its number in the dictionary.
        raised: the tokens whose mean logit rises most with the concept at the positive value, best first.
        lowered: those whose mean logit falls most, the deepest first.
        raised_down: the same as `raised`, with the concept at the negative value.
        lowered_down: the same as `lowered`, with the concept at the negative value.
    """

    concept: int
    raised: tuple[TokenScore, ...]
    lowered: tuple[TokenScore, ...]
    raised_down: tuple[TokenScore, ...]
    lowered_down: tuple[TokenScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dictionaries and lists, for JSON."""
        return asdict(self)


@INTERPRETATIONS.register("token_change")
@dataclass(frozen=True, kw_only=True)
class TokenChange(Interpretation[tuple[TokenEffects, ...]]):
    """Turn each concept up and down in every position of some sequences, and say which next tokens gain and lose.

    The effect on a token is the mean over sequences and positions of its logit with the concept changed, less that of
    the model as it is. Each position changes by decode(changed codes) − decode(its codes), as in `steer`.

    Arguments:
        value: that the concept's code is set to, or that is added; and the same below zero.
        mode: `set`, or `add`, which is what there is where the dictionary's rows are more than a token.
        k: the most tokens in each list.
        n_sequences: how many sequences; of given ones the first.
        length: tokens of a sequence; given ones are cut there.
        sequences: texts; None for tokens drawn at random, special ones left out, behind the special tokens that the
            tokenizer puts before a text.
        token_budget: the most tokens of a batch, all concepts in it included; it changes nothing but speed and memory.
        seed: of the random tokens.

    Returns:
        For each concept its `TokenEffects`.

    Raises:
        InputError: the model is not a decoder that writes, or codes are to be set where a row is more than a token.

    Source: Gur-Arieh et al. 2025 (TokenChange): 32 random sequences of 32 tokens, values of 10 and −10.
    """

    needs: ClassVar[tuple[str, ...]] = ("split",)

    value: float = 10.0
    mode: str = "set"
    k: int = 10
    n_sequences: int = 32
    length: int = 32
    sequences: tuple[str, ...] | None = None
    token_budget: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("k", "n_sequences", "length", "token_budget"):
            check_integer(name, getattr(self, name), 1)
        check_integer("seed", self.seed, 0)
        check_number("value", self.value, 0.0)
        if self.mode not in _MODES:
            raise UnknownNameError("mode", self.mode, _MODES)
        if self.value == 0:
            raise InputError("value must be above 0, for at 0 nothing is turned up or down")

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments; a hash stands for given sequences, which may be texts of a data set."""
        values = super().parameters
        if self.sequences is not None:
            values["sequences"] = hidden(json.dumps(self.sequences))
        return values

    def interpret(self, given: Given) -> tuple[TokenEffects, ...]:
        """Run the model with each concept changed; see the class."""
        split, path = given.place()
        model = split.model
        if model.task != "generation" or model.model.config.is_encoder_decoder:
            raise InputError(f"the model {model.name!r} is not a decoder that writes, so nothing is its next token")
        if self.mode == "set" and given.granularity not in _ONE_TOKEN:
            raise InputError(
                f"the dictionary's rows are {given.granularity!r}, whose codes a single token does not have; take "
                "mode='add'"
            )
        budget = max(1, min(self.token_budget, _LOGITS // model.vocabulary))
        runs = _Runs(split, path, given, self.mode, self._sequences(model), budget)
        ids = vocabulary_ids(model)
        ids = ids[ids < model.vocabulary]
        names, clean = TokenNames(model), runs.means([None])[0]
        found: list[TokenEffects] = []
        # Both signs of a concept run side by side, as do as many concepts as there is room for.
        size = max(1, runs.side_by_side // 2)
        for start in range(0, len(given.concepts), size):
            concepts = given.concepts[start : start + size]
            changes = [(concept, sign * self.value) for concept in concepts for sign in (1.0, -1.0)]
            effects = (runs.means(changes) - clean)[:, ids]
            for place, concept in enumerate(concepts):
                ends = [end for row in effects[2 * place : 2 * place + 2] for end in extremes(row, ids, self.k)]
                found.append(TokenEffects(concept, *map(names.scores, ends)))
        return tuple(found)

    def _sequences(self, model: TextModel) -> list[Integers]:
        """Return the token ids of the sequences."""
        if self.sequences is not None:
            encodings = model.encode(self.sequences[: self.n_sequences])
            rows = [encoding.ids[: self.length] for encoding in encodings]
            if not any(len(row) for row in rows):
                raise InputError("there is no sequence with a token to change concepts of")
            return [row for row in rows if len(row)]
        before = np.asarray(template(model)[0], dtype=np.int64)
        length = min(self.length, (model.max_length or self.length + len(before)) - len(before))
        drawn = np.random.default_rng(self.seed).choice(ordinary_ids(model), (self.n_sequences, length))
        return [np.concatenate([before, row]) for row in drawn]


Change = tuple[int, float] | None
"""A concept and its value; None leaves the model as it is."""


class _Runs:
    """The sequences, and the model's mean logits over them with concepts changed."""

    def __init__(
        self, split: Splitter, path: str, given: Given, mode: str, sequences: Sequence[Integers], budget: int
    ) -> None:
        self._split, self._path, self._dictionary, self._mode = split, path, given.dictionary, mode
        longest = max(map(len, sequences))
        size = max(1, budget // longest)
        parts = [sequences[start : start + size] for start in range(0, len(sequences), size)]
        self._batches = [_Batch(split, path, given, part) for part in parts]
        self.side_by_side = max(1, budget // (len(parts[0]) * longest))

    @torch.inference_mode()
    def means(self, changes: Sequence[Change]) -> Floats:
        """Return the mean logits with each change, shape (changes, vocabulary)."""
        sums = np.zeros((len(changes), self._split.model.vocabulary))
        for batch in self._batches:
            inputs = {name: tensor.repeat(len(changes), 1) for name, tensor in batch.inputs.items()}
            moves = torch.cat([self._move(batch, change) for change in changes])
            logits = self._split.outputs(inputs, {self._path: _adding(moves)}).logits
            weights = batch.inputs["attention_mask"].reshape(1, 1, -1).to(logits.device, torch.float32)
            rows = logits.float().reshape(len(changes), -1, logits.shape[-1])
            sums += torch.matmul(weights, rows)[:, 0].double().cpu().numpy()
        return sums / sum(int(batch.inputs["attention_mask"].sum()) for batch in self._batches)

    def _move(self, batch: _Batch, change: Change) -> torch.Tensor:
        """Return what a change adds to the layer's output, shape (sequences, tokens, width)."""
        places = batch.places
        move = torch.zeros(*places.shape, self._dictionary.width)
        if change is None:
            return move
        codes = batch.codes
        changed = changed_codes(codes, {change[0]: change[1]}, self._mode)
        move[places] = self._dictionary.decode(changed) - self._dictionary.decode(codes)
        return move


def _adding(moves: torch.Tensor) -> Any:
    return lambda output: output + moves.to(output.device, output.dtype)


class _Batch:
    """Some sequences, padded on the right, and the codes of the tokens that are changed."""

    def __init__(self, split: Splitter, path: str, given: Given, sequences: Sequence[Integers]) -> None:
        self._split, self._path, self._dictionary = split, path, given.dictionary
        longest = max(map(len, sequences))
        ids = torch.full((len(sequences), longest), split.model.fill_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(sequences):
            ids[place, : len(row)], mask[place, : len(row)] = torch.from_numpy(row), 1
        self.inputs = {"input_ids": ids, "attention_mask": mask}
        self.places = mask.bool()
        if given.granularity == "cls":
            self.places[:, 1:] = False

    @cached_property
    def codes(self) -> torch.Tensor:
        """The codes of the tokens that are changed, shape (tokens, n_concepts)."""
        rows = self._split.capture(self.inputs)[self._path].float().cpu()
        return self._dictionary.encode(rows[self.places])
