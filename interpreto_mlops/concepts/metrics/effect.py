"""What a dictionary leaves of the model: its outputs when a layer is replaced by what the dictionary makes of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from interpreto_mlops.concepts.belonging import place_of
from interpreto_mlops.concepts.metrics.registry import INFINITY, METRICS, ConceptMetric, metric
from interpreto_mlops.concepts.row_plans import ONE_TOKEN, BatchRows, RowPlan, plan_rows
from interpreto_mlops.errors import DataError, InputError, ModelOutputError, UnknownNameError
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.objectives import is_multi_label
from interpreto_mlops.models.packing import pack
from interpreto_mlops.models.requests import ClassLogits
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.granularity import NO_ELEMENT

if TYPE_CHECKING:
    from interpreto_mlops.concepts.base import ConceptDictionary

BASELINES = ("mean", "zero")
"""What a layer is replaced by to see what the model does without it."""

_MOST_LOGITS = 2**24  # of one batch: 64 MiB, three times
_BLOCK_LOGITS = 2**20


@dataclass
class EffectStatistics:
    """Sums over predictions: of the model as it is, with the layer reconstructed, and with it ablated."""

    count: int = 0
    ce_clean: float = 0.0
    ce_replaced: float = 0.0
    ce_ablated: float = 0.0
    logit_clean: float = 0.0
    logit_replaced: float = 0.0
    logit_ablated: float = 0.0
    kl_replaced: float = 0.0
    kl_ablated: float = 0.0
    agreed: int = 0

    def add(self, clean: torch.Tensor, replaced: torch.Tensor, ablated: torch.Tensor, targets: torch.Tensor) -> None:
        """Take logits of predictions, shape (predictions, classes), and their right classes, shape (predictions,)."""
        # In float64 the logits of a vocabulary are large, so a few predictions at a time.
        size = max(1, _BLOCK_LOGITS // clean.shape[1])
        for parts in zip(*(each.split(size) for each in (clean, replaced, ablated, targets)), strict=True):
            self._add(*parts)

    def _add(self, clean: torch.Tensor, replaced: torch.Tensor, ablated: torch.Tensor, targets: torch.Tensor) -> None:
        self.count += len(clean)
        self.agreed += int((clean.argmax(1) == replaced.argmax(1)).sum())
        logs = {}
        for name, logits in (("clean", clean), ("replaced", replaced), ("ablated", ablated)):
            wide = logits.double()
            logs[name] = wide.log_softmax(1)
            own = targets[:, None]
            self._gain(f"ce_{name}", -logs[name].gather(1, own))
            self._gain(f"logit_{name}", wide.gather(1, own))
        for name in ("replaced", "ablated"):
            self._gain(f"kl_{name}", logs["clean"].exp() * (logs["clean"] - logs[name]))

    def _gain(self, name: str, values: torch.Tensor) -> None:
        setattr(self, name, getattr(self, name) + float(values.sum()))


class EffectMetric(ConceptMetric):
    """A metric of the model's outputs with a layer replaced: call it with logits."""

    needs: ClassVar[str] = "outputs"

    def __call__(
        self, clean: torch.Tensor, replaced: torch.Tensor, ablated: torch.Tensor, targets: torch.Tensor
    ) -> float:
        """Compute it for logits in memory.

        Arguments:
            clean: the model's, shape (predictions, classes).
            replaced: with the layer reconstructed, of the same shape.
            ablated: with the layer ablated, of the same shape.
            targets: the right class of each, shape (predictions,).

        Raises:
            InputError: shapes that do not belong together, or no prediction.
        """
        if not clean.shape == replaced.shape == ablated.shape or clean.dim() != 2 or targets.shape != clean.shape[:1]:
            raise InputError(
                f"logits {tuple(clean.shape)}, {tuple(replaced.shape)}, {tuple(ablated.shape)} and targets "
                f"{tuple(targets.shape)} do not belong together"
            )
        if not len(clean):
            raise InputError("the effect on a model needs at least one prediction")
        statistics = EffectStatistics()
        statistics.add(clean, replaced, ablated, targets)
        return self.compute(statistics)


def _recovered(ablated: float, replaced: float, clean: float) -> float:
    return (ablated - replaced) / (ablated - clean) if ablated != clean else float("nan")


@metric(EffectMetric, "effect/agreement", higher_is_better=True, bounds=(0.0, 1.0))
def agreement(statistics: EffectStatistics) -> float:
    """Share of the predictions whose most likely class or token stays the same when the layer is reconstructed."""
    return statistics.agreed / statistics.count


@metric(EffectMetric, "effect/kl", higher_is_better=False, bounds=(0.0, INFINITY))
def kl(statistics: EffectStatistics) -> float:
    """Mean Kullback–Leibler divergence, in nats, of predictions with the layer reconstructed from the model's own."""
    return max(0.0, statistics.kl_replaced / statistics.count)


@metric(EffectMetric, "effect/kl_recovered", higher_is_better=True, bounds=(-INFINITY, 1.0))
def kl_recovered(statistics: EffectStatistics) -> float:
    """Share of the divergence of an ablated layer that the reconstruction avoids: 1 − KL / KL of the ablation.

    NaN where the ablation changes nothing.
    """
    return _recovered(statistics.kl_ablated, statistics.kl_replaced, 0.0)


@metric(EffectMetric, "effect/ce_increase", higher_is_better=False, bounds=(-INFINITY, INFINITY))
def ce_increase(statistics: EffectStatistics) -> float:
    """By how much the mean cross-entropy, in nats, grows when the layer is reconstructed."""
    return (statistics.ce_replaced - statistics.ce_clean) / statistics.count


@metric(EffectMetric, "effect/ce_recovered", higher_is_better=True, bounds=(-INFINITY, INFINITY))
def ce_recovered(statistics: EffectStatistics) -> float:
    """Share of the cross-entropy lost by an ablated layer that the reconstruction recovers.

    (CE ablated − CE reconstructed) / (CE ablated − CE of the model): 1 for the model itself, 0 for the ablation. NaN
    where the ablation changes nothing.

    Source: Bricken et al. 2023; SAEBench (Karvonen et al. 2025).
    """
    return _recovered(statistics.ce_ablated, statistics.ce_replaced, statistics.ce_clean)


@metric(EffectMetric, "effect/logit_recovered", higher_is_better=True, bounds=(-INFINITY, INFINITY))
def logit_recovered(statistics: EffectStatistics) -> float:
    """Share of the right class's mean logit, lost by an ablated layer, that the reconstruction recovers.

    NaN where the ablation changes nothing.
    """
    return _recovered(statistics.logit_ablated, statistics.logit_replaced, statistics.logit_clean)


def evaluate_effect(
    split: Splitter,
    dictionary: ConceptDictionary,
    texts: Iterable[str] | TextDataset,
    *,
    layer: int | str | None = None,
    labels: Sequence[int] | None = None,
    baseline: str = "mean",
    token_budget: int = 2048,
    allow_mismatch: bool = False,
) -> dict[str, float]:
    """Run the model on texts as it is, with a layer reconstructed by a dictionary, and with it ablated.

    The rows that the dictionary models are replaced; special tokens, which it was not fitted on, stay. Where a row is
    the mean of several tokens, each of these moves by the row's error, so that their mean is the reconstruction.

    Predictions are the class of each text for a sequence classifier, the label of each token that is not special for a
    token classifier, the next token at each place for a decoder. The right ones, for the cross-entropy, are the given
    labels or the text's own next tokens; without labels, what the model itself says.

    Arguments:
        split: the model, split at the dictionary's layer.
        dictionary: fitted.
        texts: the texts; they are read once and held as token ids. Those without a row, which nothing replaces, are
            left out.
        layer: the split point; None takes the dictionary's own layer, or the only split point.
        labels: the class of each text, for a sequence classifier.
        baseline: what ablates the layer: the `mean` of the rows of these texts, or `zero`.
        token_budget: the most tokens of a batch, padding included; it changes nothing but speed.
        allow_mismatch: take a dictionary of another model all the same.

    Returns:
        The `effect/…` metrics by name.

    Warns:
        UserWarning: the ablation changes nothing that the model predicts, so that no share of it can be recovered.

    Raises:
        InputError: a model without classes or next tokens, labels that do not fit, or rows that are no means.
        DataError: no text has a token that is predicted.
        IntegrityError: a dictionary of another model.
        ModelOutputError: the model puts out NaN or infinity.
    """
    if baseline not in BASELINES:
        raise UnknownNameError("baseline", baseline, BASELINES)
    path = place_of(split, dictionary, layer, allow_mismatch=allow_mismatch)
    run = _Effect(split, dictionary, path, token_budget)
    source = texts.texts if isinstance(texts, TextDataset) else texts
    encodings = list(split.model.encode(source))
    run.check_labels(encodings, labels)
    encodings = [encoding for encoding in encodings if run.has_rows(encoding)]
    if baseline == "mean":
        run.find_mean(encodings)
    statistics = run.measure(encodings, labels)
    if not statistics.count:
        raise DataError(f"none of the texts has both {run.granularity!r} rows and something that the model predicts")
    if statistics.kl_ablated == 0.0:
        warnings.warn(
            f"ablating the {run.granularity!r} rows of {path!r} changes nothing that the model predicts, so the shares "
            "that are recovered are NaN; take an earlier layer, or the granularity 'cls' at the last one",
            stacklevel=2,
        )
    return {each.name: each.compute(statistics) for _, each in METRICS.items() if each.needs == "outputs"}


def predicted_classes(
    split: Splitter,
    dictionary: ConceptDictionary,
    texts: Iterable[str] | TextDataset,
    *,
    layer: int | str | None = None,
    token_budget: int = 2048,
    allow_mismatch: bool = False,
) -> npt.NDArray[np.int64]:
    """Return the class of each text as the model says it, and as it says it with a layer reconstructed.

    Arguments:
        split: a sequence classifier, split at the dictionary's layer; the other arguments are `evaluate_effect`'s.

    Returns:
        Class ids, shape (texts, 2); −1 for a text without a row, which nothing replaces.

    Raises:
        InputError: another model, or rows that are no means.
        IntegrityError: a dictionary of another model.
        ModelOutputError: the model puts out NaN or infinity.
    """
    path = place_of(split, dictionary, layer, allow_mismatch=allow_mismatch)
    run = _Effect(split, dictionary, path, token_budget)
    if split.model.task != "classification":
        raise InputError(f"classes of texts are said by sequence classifiers, and {split.model.name!r} is none")
    encodings = list(split.model.encode(texts.texts if isinstance(texts, TextDataset) else texts))
    classes = np.full((len(encodings), 2), -1, dtype=np.int64)
    for places, found in run.classes([encoding for encoding in encodings if run.has_rows(encoding)]):
        classes[places] = found.numpy()
    return classes


def has_predictions(model: TextModel) -> bool:
    """Whether the effect of a layer on the model can be measured: it has exclusive classes, or is a decoder."""
    if model.task == "generation":
        return not model.model.config.is_encoder_decoder
    classifies = model.task in {"classification", "token_classification"}
    return classifies and len(model.labels) > 1 and not is_multi_label(model)


class _Effect:
    """The three forward passes of each batch."""

    def __init__(self, split: Splitter, dictionary: ConceptDictionary, path: str, token_budget: int) -> None:
        self.split, self.dictionary, self.path, self.model = split, dictionary, path, split.model
        said = dictionary.provenance
        self.granularity = str(said.get("granularity", "sample" if path in split.per_text else "token"))
        several = path not in split.per_text and self.granularity not in ONE_TOKEN
        if several and (said.get("aggregation") or "mean") != "mean":
            raise InputError(
                f"rows that are the {said['aggregation']!r} of their tokens cannot be put back into the layer; fit on "
                "means"
            )
        self._check_task()
        words = self.model.vocabulary if self.model.task == "generation" else len(self.model.labels)
        self.token_budget = max(1, min(token_budget, _MOST_LOGITS // max(1, words)))
        self.mean = torch.zeros(dictionary.width)

    def _check_task(self) -> None:
        model = self.model
        if not has_predictions(model):
            raise InputError(
                f"the effect on {model.name!r} cannot be measured: that needs exclusive classes, or a decoder"
            )

    def has_rows(self, encoding: Encoding) -> bool:
        """Whether a text has a row that can be replaced."""
        return len(encoding) > 0 and (
            self.path in self.split.per_text or len(plan_rows(encoding, self.granularity)) > 0
        )

    def check_labels(self, encodings: Sequence[Encoding], labels: Sequence[int] | None) -> None:
        """Refuse labels that are no classes of the model, or not one for each text."""
        if labels is None:
            return
        if self.model.task != "classification":
            raise InputError("labels are for sequence classifiers; a decoder predicts the text's own tokens")
        known = range(len(self.model.labels))
        if any(isinstance(label, bool) or label not in known for label in labels):
            raise InputError(f"labels must be class ids from 0 to {known[-1]}")
        if encodings and encodings[-1].index >= len(labels):
            raise InputError(f"give a label for each text, not {len(labels)}")

    def find_mean(self, encodings: Sequence[Encoding]) -> None:
        """Set the mean of all rows, which ablates the layer."""
        total, count = torch.zeros(self.dictionary.width, dtype=torch.float64), 0
        for plans, inputs in self._batches(encodings):
            rows = self._gather(plans, self.split.capture(inputs)[self.path])[0]
            total += rows.double().sum(dim=0)
            count += len(rows)
        self.mean = (total / max(1, count)).float()

    def measure(self, encodings: Sequence[Encoding], labels: Sequence[int] | None) -> EffectStatistics:
        """Run the model on all texts as it is, with the layer reconstructed, and with the layer ablated."""
        statistics = EffectStatistics()
        for plans, inputs in self._batches(encodings):
            clean = self._predictions(plans, inputs)
            with self._moved(plans, self._reconstruct):
                replaced = self._predictions(plans, inputs)
            with self._moved(plans, lambda rows: self.mean.expand_as(rows)):
                ablated = self._predictions(plans, inputs)
            if len(clean):
                statistics.add(clean, replaced, ablated, self._targets(plans, clean, labels))
        return statistics

    def classes(self, encodings: Sequence[Encoding]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Yield the places of a batch's texts, and their classes as they are and reconstructed, shape (texts, 2)."""
        for plans, inputs in self._batches(encodings):
            clean = self._predictions(plans, inputs).argmax(dim=1)
            with self._moved(plans, self._reconstruct):
                replaced = self._predictions(plans, inputs).argmax(dim=1)
            yield [plan.encoding.index for plan in plans], torch.stack([clean, replaced], dim=1)

    def _reconstruct(self, rows: torch.Tensor) -> torch.Tensor:
        return self.dictionary.decode(self.dictionary.encode(rows))

    def _batches(self, encodings: Sequence[Encoding]) -> Iterator[tuple[list[RowPlan], dict[str, torch.Tensor]]]:
        for places in pack([len(encoding) for encoding in encodings], self.token_budget):
            chosen = [encodings[i] for i in places]
            yield [plan_rows(encoding, self.granularity) for encoding in chosen], self.model.inputs(chosen)

    def _gather(self, plans: list[RowPlan], output: torch.Tensor) -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
        """Return the rows of a batch, shape (rows, width), and the row of each token, shape (texts, tokens)."""
        if self.path in self.split.per_text:
            return output.float().cpu(), np.arange(len(plans))
        tokens = output.shape[1]
        starts = np.cumsum([0, *map(len, plans)])[:-1]
        of_token = np.full((len(plans), tokens), NO_ELEMENT)
        for i, (plan, start) in enumerate(zip(plans, starts, strict=True)):
            places = np.flatnonzero(plan.of_token != NO_ELEMENT)
            of_token[i, places] = start + plan.of_token[places]
        return BatchRows(plans, starts, tokens, "mean").of_tokens(output).cpu(), of_token

    def _moved(self, plans: list[RowPlan], remake: Any) -> Any:
        """Replace the layer's rows by what `remake` makes of them, while the context is open."""

        def replace(output: torch.Tensor) -> torch.Tensor:
            rows, of_token = self._gather(plans, output)
            moves = torch.cat([remake(rows) - rows, torch.zeros(1, output.shape[-1])])  # the last for what stays
            return output + moves[torch.from_numpy(of_token)].to(output.device, output.dtype)

        return self.split.replaced(self.path, replace)

    def _predictions(self, plans: list[RowPlan], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits of the batch's predictions, shape (predictions, classes)."""
        model = self.model
        with model.evaluating(), torch.inference_mode():
            batch = model.with_positions(inputs)
            if model.task == "classification":
                logits = ClassLogits.read(model, batch, [ClassLogits()] * len(plans))
            else:
                every = model.call(model.model, batch).logits
                logits = torch.cat([every[i, self._places(plan)] for i, plan in enumerate(plans)]).float()
        finite = logits.isfinite().all(dim=1)
        if not bool(finite.all()):
            encoding = self._owners(plans)[int(finite.int().argmin())].encoding
            raise ModelOutputError(f"the model gives NaN or infinity for text {encoding.index}: {encoding.text[:60]!r}")
        return logits.cpu()

    def _owners(self, plans: list[RowPlan]) -> list[RowPlan]:
        """Return the text of each prediction."""
        if self.model.task == "classification":
            return plans
        return [plan for plan in plans for _ in self._places(plan)]

    def _places(self, plan: RowPlan) -> torch.Tensor:
        """Return where predictions are read: before each token but the first, or at tokens that are not special."""
        if self.model.task == "generation":
            return torch.arange(len(plan.encoding) - 1)
        return torch.from_numpy(np.flatnonzero(~plan.encoding.special))

    def _targets(self, plans: list[RowPlan], clean: torch.Tensor, labels: Sequence[int] | None) -> torch.Tensor:
        if self.model.task == "generation":
            return torch.from_numpy(np.concatenate([plan.encoding.ids[1:] for plan in plans]).astype(np.int64))
        if labels is not None:
            return torch.tensor([labels[plan.encoding.index] for plan in plans])
        return clean.argmax(dim=1)
