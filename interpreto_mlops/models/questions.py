"""What is asked about one text: which scalars to explain, and how they are read from the model.

A question is made for each task from what the user gives as targets; methods and metrics see only its objective.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from interpreto_mlops.errors import InputError, TextWarning
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.objectives import (
    ClassObjective,
    InferenceMode,
    LabelObjective,
    Objective,
    Target,
    TokenObjective,
    is_multi_label,
)
from interpreto_mlops.models.probes import check_left_to_right
from interpreto_mlops.models.readouts import LabelLogits, SourceTokenScores, TokenLogits, TokenScores
from interpreto_mlops.models.requests import ClassLogits, Floats, Readout
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.granularity import Elements

Visible = npt.NDArray[np.bool_]
"""Which elements matter to which target, shape (targets, elements); one row when the same for all."""


class Question(ABC):
    """What is asked about one text.

    Arguments:
        model: the model.
        encoding: the text.
        readout: what is read from the model for it.
    """

    def __init__(self, model: TextModel, encoding: Encoding, readout: Readout) -> None:
        self.model, self.encoding, self.readout = model, encoding, readout

    @abstractmethod
    def settle(self, full: Floats, mode: InferenceMode) -> Objective:
        """Return the objective, now that what was read for the whole text is known, shape (width,)."""

    def narrow(self, mode: InferenceMode) -> None:
        """Read no more from the model than scores in this mode need."""
        return

    def visible(self, elements: Elements) -> Visible:
        """Return which elements get a score for each target, shape (targets, elements), or (1, …) for all."""
        return np.ones((1, len(elements)), dtype=bool)

    def reaching(self, elements: Elements) -> Visible:
        """Return which elements each target's score can depend on, shape (targets, elements), or (1, …) for all."""
        return np.ones((1, len(elements)), dtype=bool)

    @property
    def expected(self) -> tuple[Target, ...]:
        """The targets as far as they are known before the model runs."""
        return ()

    @property
    def place(self) -> tuple[Splitter, str] | None:
        """The split point that the targets are read at; None for the model's head."""
        return None

    def positions_of(self, target: Target) -> tuple[int, ...]:
        """Return the tokens that a target is read at, once that is known; none where the head chooses them."""
        return target.positions


class ClassQuestion(Question):
    """Classes of a text, or the predicted one.

    Arguments:
        classes: the ids, or None for the predicted class.
        contrast: for each class the one that it is explained against, or one for all, or none.
    """

    def __init__(
        self,
        model: TextModel,
        encoding: Encoding,
        classes: tuple[int, ...] | None = None,
        contrast: tuple[int, ...] = (),
    ) -> None:
        super().__init__(model, encoding, ClassLogits())
        self.classes = classes
        self.contrast = _one_a_target(contrast, 1 if classes is None else len(classes), encoding.index)

    def settle(self, full: Floats, mode: InferenceMode) -> ClassObjective:
        """Return the objective; without classes it is that of the largest logit."""
        classes = self.classes or (int(full.argmax()),)
        if any(target.contrast == (target.id,) for target in self._targets(classes)):
            message = f"text {self.encoding.index} is explained against its own target; those scores are 0"
            warnings.warn(message, TextWarning, stacklevel=2)
        return ClassObjective(targets=self._targets(classes), mode=mode, multi_label=is_multi_label(self.model))

    @property
    def expected(self) -> tuple[Target, ...]:
        """The given classes."""
        return self._targets(self.classes or ())

    def _targets(self, classes: tuple[int, ...]) -> tuple[Target, ...]:
        labels = self.model.labels
        if not self.contrast:
            return tuple(Target(each, labels[each]) for each in classes)
        pairs = zip(classes, self.contrast, strict=False)
        return tuple(
            Target(each, labels[each], contrast=(other,), contrast_name=labels[other]) for each, other in pairs
        )


class LabelQuestion(Question):
    """Labels of tokens: given ones, or the predicted label of each element.

    An element's label is read at its first token.

    Arguments:
        places: for each target the positions that it is read at, and its name in the text.
        labels: for each target its label, or None for the predicted ones.
        contrast: for each target the label it is explained against, or one for all, or none.
    """

    readout: LabelLogits

    def __init__(
        self,
        model: TextModel,
        encoding: Encoding,
        places: Sequence[tuple[tuple[int, ...], str]],
        labels: tuple[int, ...] | None = None,
        contrast: tuple[int, ...] = (),
    ) -> None:
        positions = tuple(sorted({position for at, _ in places for position in at}))
        super().__init__(model, encoding, LabelLogits(positions, len(model.labels)))
        self.places, self.labels = list(places), labels
        self.contrast = _one_a_target(contrast, len(self.places), encoding.index)

    def settle(self, full: Floats, mode: InferenceMode) -> LabelObjective:
        """Return the objective; without labels it is that of the largest logit of each element."""
        positions = self.readout.positions
        best = full.reshape(len(positions), -1).argmax(axis=1)
        predicted = tuple(int(best[positions.index(at[0])]) for at, _ in self.places)
        return LabelObjective(targets=self._targets(self.labels or predicted), positions=positions, mode=mode)

    @property
    def expected(self) -> tuple[Target, ...]:
        """The given labels."""
        return () if self.labels is None else self._targets(self.labels)

    def _targets(self, labels: tuple[int, ...]) -> tuple[Target, ...]:
        names = self.model.labels
        against = self.contrast
        return tuple(
            Target(
                label,
                f"{name}: {names[label]}",
                positions=at,
                contrast=(against[k],) if against else (),
                contrast_name=names[against[k]] if against else None,
            )
            for k, ((at, name), label) in enumerate(zip(self.places, labels, strict=True))
        )


def _one_a_target(contrast: tuple[int, ...], n_targets: int, index: int) -> tuple[int, ...]:
    """Return as many contrasts as there are targets, from as many, one or none."""
    if len(contrast) not in (0, 1, n_targets):
        raise InputError(f"text {index} has {n_targets} targets and {len(contrast)} contrasts; give one for each")
    return contrast * n_targets if len(contrast) == 1 else contrast


class ContinuationQuestion(Question):
    """Generated tokens, or words and sentences of them, each scored given all before it.

    Arguments:
        targets: their `positions` are places in `encoding.ids`, each the one before the token's own.

    Raises:
        InputError: the model does not read from left to right.
    """

    def __init__(self, model: TextModel, encoding: Encoding, targets: tuple[Target, ...]) -> None:
        check_left_to_right(model)
        contrasted = [target for target in targets if target.contrast]
        positions = [p for target in targets for p in target.positions]
        positions += [p for target in contrasted for p in target.positions]
        ids = [i for target in targets for i in target.ids] + [i for target in contrasted for i in target.contrast]
        kind = SourceTokenScores if model.model.config.is_encoder_decoder else TokenScores
        super().__init__(model, encoding, kind(tuple(positions), tuple(ids), encoding.first_part))
        self.targets = targets

    def settle(self, full: Floats, mode: InferenceMode) -> TokenObjective:
        """Return the objective."""
        return TokenObjective(targets=self.targets, mode=mode, logits_only=isinstance(self.readout, TokenLogits))

    def narrow(self, mode: InferenceMode) -> None:
        """For logits no vocabulary-wide product is needed, where the decoder's head allows that."""
        if mode is InferenceMode.LOGITS and type(self.readout) is TokenScores:
            self.readout = TokenLogits(self.readout.positions, self.readout.ids, self.readout.prompt_tokens)

    @property
    def expected(self) -> tuple[Target, ...]:
        """The targets."""
        return self.targets

    def visible(self, elements: Elements) -> Visible:
        """Return which elements end before each target begins, shape (targets, elements)."""
        # The token of a target stands one place after the one that it is read at.
        begins = np.asarray([target.positions[0] + 1 for target in self.targets])
        seen: Visible = elements.ends()[1][None, :] < begins[:, None]
        return seen

    def reaching(self, elements: Elements) -> Visible:
        """Return which elements have a token before each target's last, shape (targets, elements).

        They are more than the visible ones where a word holds several target tokens.
        """
        last = np.asarray([target.positions[-1] + 1 for target in self.targets])
        some: Visible = elements.ends()[0][None, :] < last[:, None]
        return some
