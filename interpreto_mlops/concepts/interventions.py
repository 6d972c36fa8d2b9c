"""Changing concepts while the model runs: adding, setting, scaling or removing them, and what that does."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy import stats

from interpreto_mlops.concepts.base import ConceptDictionary, check_integer, check_number
from interpreto_mlops.concepts.belonging import place_of
from interpreto_mlops.concepts.importance.base import Floats
from interpreto_mlops.concepts.importance.frame import Frame
from interpreto_mlops.concepts.importance.subjects import Subject
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.objectives import InferenceMode, Target, check_mode
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.targets import check_texts, questions
from interpreto_mlops.text.datasets import TextDataset

MODES = ("add", "set", "scale")
"""What a change does to a code: it is added, put in its place, or multiplied with it."""

_TOKEN_ROWS = ("token", "all_tokens", "cls")
_CONFIDENCE = 0.95


def changed_codes(codes: torch.Tensor, changes: Mapping[int, float], mode: str) -> torch.Tensor:
    """Return codes, shape (rows, n_concepts), with some concepts changed."""
    out = codes.clone()
    for concept, value in changes.items():
        if mode == "add":
            out[:, concept] += value
        elif mode == "set":
            out[:, concept] = value
        else:
            out[:, concept] *= value
    return out


@contextmanager
def steer(
    split: Splitter,
    dictionary: ConceptDictionary,
    changes: Mapping[int, float],
    *,
    mode: str = "add",
    layer: int | str | None = None,
    positions: Sequence[int] | None = None,
    allow_mismatch: bool = False,
) -> Iterator[None]:
    """Change concepts in every forward pass of the model that this thread makes while the context is open.

    Every token's activation moves by decode(changed codes) − decode(its codes): what the dictionary does not
    reconstruct stays. Nothing is known of special tokens or padding here, so they move, too, unless `positions` leaves
    them out. While a model generates with a cache, each new token is changed as it comes.

    Arguments:
        split: the model, split at the dictionary's layer; call `split.model.model` in the context.
        dictionary: fitted on tokens, or at a split point with one vector for each text.
        changes: a value for each concept id, in units of the code.
        mode: `add`, `set` or `scale`; `ablate` sets to 0.
        layer: the split point; None takes the dictionary's own layer, or the only split point.
        positions: the places of tokens to change, counted from the start of the padded row, what is in the cache
            included; None for all, or for the first one where the dictionary was fitted on `cls`.
        allow_mismatch: take a dictionary of another model all the same.

    Raises:
        InputError: concepts that there are not, positions that are no places, or rows that are not tokens.
        UnknownNameError: an unknown mode.
        IntegrityError: the dictionary was fitted on another model.
    """
    path = place_of(split, dictionary, layer, allow_mismatch=allow_mismatch)
    _check(dictionary, changes, mode)
    granularity = str(dictionary.provenance.get("granularity", "token"))
    if path not in split.per_text and granularity not in _TOKEN_ROWS:
        raise InputError(
            f"the dictionary's rows are {granularity!r}, which a forward pass does not know; use intervention_effect, "
            "or fit on tokens"
        )
    for position in positions or ():
        check_integer("a position", position, 0)
    if positions is None and granularity == "cls":
        positions = (0,)
    cached = [0]

    def replace(output: torch.Tensor) -> torch.Tensor | None:
        rows = output.reshape(-1, output.shape[-1])
        chosen = _chosen(output, positions, cached[0])
        if not len(chosen):
            return None
        own = rows[chosen].detach().float().cpu()
        codes = dictionary.encode(own)
        moved = dictionary.decode(changed_codes(codes, changes, mode)) - dictionary.decode(codes)
        out = rows.clone()
        out[chosen] += moved.to(output.device, output.dtype)
        return out.reshape(output.shape)

    with _counting(split, cached), split.replaced(path, replace):
        yield


@contextmanager
def _counting(split: Splitter, cached: list[int]) -> Iterator[None]:
    """Note at the start of this thread's forward passes how many tokens the cache holds."""
    owner = threading.get_ident()

    def note(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == owner:
            cache = kwargs.get("past_key_values")
            cached[0] = 0 if cache is None else int(cache.get_seq_length())

    def forget(_module: Any, _args: Any, _output: Any) -> None:
        # An encoder is also called by itself, when a model begins to generate.
        if threading.get_ident() == owner:
            cached[0] = 0

    network = split.model.model
    handles = [
        network.register_forward_pre_hook(note, with_kwargs=True),
        network.register_forward_hook(forget, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def ablate(split: Splitter, dictionary: ConceptDictionary, concepts: Iterable[int], **options: Any) -> Iterator[None]:
    """Set concepts to zero while the context is open; the other arguments and errors are those of `steer`."""
    with steer(split, dictionary, dict.fromkeys(concepts, 0.0), mode="set", **options):
        yield


def _chosen(output: torch.Tensor, positions: Sequence[int] | None, cached: int) -> torch.Tensor:
    """Return which of the flattened rows are changed."""
    if positions is None or output.dim() == 2:
        return torch.arange(output.shape[:-1].numel(), device=output.device)
    n_rows, n_tokens = output.shape[:2]
    places = torch.tensor(
        [p - cached for p in positions if 0 <= p - cached < n_tokens], dtype=torch.int64, device=output.device
    )
    return (torch.arange(n_rows, device=output.device)[:, None] * n_tokens + places).flatten()


def _check(dictionary: ConceptDictionary, changes: Mapping[int, float], mode: str) -> None:
    if mode not in MODES:
        raise UnknownNameError("mode", mode, MODES)
    dictionary.tensor(next(iter(dictionary.weights), ""))
    if not changes:
        raise InputError("give at least one concept to change")
    for concept, value in changes.items():
        known = not isinstance(concept, bool) and isinstance(concept, int | np.integer)
        if not known or not 0 <= concept < dictionary.n_concepts:
            raise InputError(f"there is no concept {concept!r}: they are 0 to {dictionary.n_concepts - 1}")
        check_number(f"the value of concept {concept}", float(value), float("-inf"))


@dataclass(frozen=True)
class InterventionEffect:
    """What changing concepts does to the scores of targets.

    Arguments:
        changes: the value for each concept.
        mode: what was done with it.
        text_ids: the text of each target.
        targets: what is scored.
        before: the scores of the model as it is, shape (targets,).
        after: the scores with the concepts changed, shape (targets,).
        changed: whether the most likely class of the target's text is another one, shape (targets,); None for language
            models and taggers.
    """

    changes: dict[int, float]
    mode: str
    text_ids: tuple[int, ...]
    targets: tuple[Target, ...]
    before: Floats
    after: Floats
    changed: npt.NDArray[np.bool_] | None

    @property
    def effects(self) -> Floats:
        """After less before, shape (targets,)."""
        return self.after - self.before

    @property
    def mean(self) -> float:
        """The mean effect."""
        return float(self.effects.mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the mean effect, by Student's t over targets; infinite for a single one."""
        n = len(self.effects)
        if n < 2:
            return float("-inf"), float("inf")
        half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1) * self.effects.std(ddof=1) / np.sqrt(n))
        return self.mean - half, self.mean + half

    @property
    def share_changed(self) -> float:
        """The share of targets whose text is predicted as another class; NaN where that is not asked."""
        return float("nan") if self.changed is None else float(self.changed.mean())

    def to_frame(self) -> pd.DataFrame:
        """Return a row for each target: `text`, `target`, `before`, `after`, `effect`, and `changed` if it is known."""
        frame = pd.DataFrame(
            {
                "text": self.text_ids,
                "target": [target.title for target in self.targets],
                "before": self.before,
                "after": self.after,
                "effect": self.effects,
            }
        )
        return frame if self.changed is None else frame.assign(changed=self.changed)


def intervention_effect(
    split: Splitter,
    dictionary: ConceptDictionary,
    texts: Iterable[Any] | TextDataset,
    changes: Mapping[int, float],
    *,
    mode: str = "add",
    targets: Any = None,
    contrast: Any = None,
    generation: Mapping[str, Any] | None = None,
    truncation: bool = False,
    inference_mode: str = "logits",
    layer: int | str | None = None,
    token_budget: int = 2048,
    allow_mismatch: bool = False,
) -> InterventionEffect:
    """Score targets with and without a change of concepts in the rows that the dictionary models.

    Special tokens, which it was not fitted on, stay. Where a row is the mean of several tokens, its change moves all of
    them.

    Arguments:
        split: a classifier of sequences or tokens, or a language model, split at the dictionary's layer.
        dictionary: fitted.
        texts: the texts.
        changes: a value for each concept id, in units of the code.
        mode: `add`, `set` or `scale`.
        targets: what is scored, as for attributions; None for what the model itself says.
        contrast: what the targets are scored against.
        generation: arguments of a language model's own generation.
        truncation: whether a prompt that is too long is cut on the left.
        inference_mode: the space in which scores are read.
        layer: the split point; None takes the dictionary's own layer, or the only split point.
        token_budget: the most tokens of a batch, padding included; it changes nothing but speed.
        allow_mismatch: take a dictionary of another model all the same.

    Raises:
        InputError, UnknownNameError, IntegrityError, ModelOutputError: as `steer` and `local_importance`.
    """
    path = place_of(split, dictionary, layer, allow_mismatch=allow_mismatch)
    _check(dictionary, changes, mode)
    read = InferenceMode.parse(inference_mode)
    check_mode(split.model, read)
    source = texts.texts if isinstance(texts, TextDataset) else texts
    check_texts(source)
    asked = questions(
        split.model, source, targets, contrast=contrast, generation=generation or {}, truncation=truncation
    )
    frame = Frame(split, dictionary, path, mode=read, keep_error=True, token_budget=token_budget, seed=0)
    found: list[tuple[Subject, Floats, bool]] = []
    for subjects in frame.subjects(asked):
        codes = [changed_codes(each.codes, changes, mode) for each in subjects]
        for each, after in zip(subjects, frame.read_with(subjects, codes.__getitem__), strict=True):
            other = int(after.argmax()) != int(each.read.argmax())
            found.append((each, each.scored(after).double().cpu().numpy(), other))
    if not found:
        raise InputError("there is no text with a token to change concepts of")
    classified = split.model.task == "classification"
    of_targets = [(each, target, other) for each, _, other in found for target in each.targets]
    return InterventionEffect(
        {int(concept): float(value) for concept, value in changes.items()},
        mode,
        tuple(each.question.encoding.index for each, _, _ in of_targets),
        tuple(target for _, target, _ in of_targets),
        np.concatenate([each.full for each, _, _ in found]),
        np.concatenate([after for _, after, _ in found]),
        np.asarray([other for _, _, other in of_targets]) if classified else None,
    )
