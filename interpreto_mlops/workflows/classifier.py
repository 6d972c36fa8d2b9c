"""A small BERT classifier, trained from nothing on the CPU within a minute or so."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from interpreto_mlops.errors import DataError, InputError
from interpreto_mlops.text.datasets import TextDataset

PAD, UNK, CLS, SEP, MASK = SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_HEAD_WIDTH = 32
_SHORTEST = 3
_BUCKET_BATCHES = 16
_WARM_UP = 0.1
_WEIGHT_DECAY = 0.1
_LABEL_SMOOTHING = 0.05
_INITIAL_STD = 0.05
_POSITION_SCALE = 0.1
_MASKED_ROWS = 0.5
_LARGEST_MASK_RATE = 0.5


@dataclass(frozen=True)
class TrainedClassifier:
    """A trained classifier and how well it does.

    Arguments:
        model: in evaluation mode, on the CPU; its config names the labels.
        tokenizer: lower-casing WordPiece with BERT's special tokens and template.
        accuracy: share of the held-out texts that are classified right.
        history: one entry an epoch: `epoch`, `loss` (mean over the training batches), `accuracy` (held out), `seconds`
            (since training began).
        seconds: wall-clock time of the whole training.
    """

    model: BertForSequenceClassification
    tokenizer: PreTrainedTokenizerFast
    accuracy: float
    history: list[dict[str, float]] = field(repr=False)
    seconds: float


def train_classifier(
    train: TextDataset,
    test: TextDataset,
    *,
    seed: int = 0,
    epochs: int = 5,
    width: int = 96,
    layers: int = 3,
    max_length: int = 128,
    vocab_size: int = 10_000,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    dropout: float = 0.1,
    progress: bool | None = False,
) -> TrainedClassifier:
    """Train a BERT classifier with a vocabulary of its own; the same seed and thread count give the same weights.

    Half of the training texts of each step have a random part of their tokens replaced by [MASK], so that the model
    knows that token when a perturbation method puts it in.

    Arguments:
        train: texts with labels; its labels are the classes.
        test: held-out texts, used for nothing but the accuracies reported.
        seed: of the initial weights, the order of the texts, dropout and masking.
        epochs: passes over the training texts.
        width: of the hidden states; a multiple of 32, the width of an attention head.
        layers: number of transformer layers; two at least let concepts be compared between layers.
        max_length: tokens a text is cut to, special tokens included.
        vocab_size: number of word pieces at most.
        batch_size: texts a step.
        learning_rate: the highest of the schedule.
        dropout: on embeddings, hidden states and the classifier's input.
        progress: show a progress bar; None shows it on a terminal only.

    Raises:
        DataError: no labels, fewer than two classes, or held-out labels that the training texts do not have.
        InputError: a size that is not positive, or a width that is not a multiple of 32.
    """
    _check_sizes(
        epochs=epochs, width=width, layers=layers, max_length=max_length, vocab_size=vocab_size, batch_size=batch_size
    )
    classes = _classes(train, test)
    start = time.perf_counter()
    tokenizer = train_tokenizer(train.texts, vocab_size=vocab_size, max_length=max_length)
    encoded, held_out = (_encode(tokenizer, data, classes) for data in (train, test))
    recipe = _Recipe(batch_size, learning_rate, epochs, seed)
    # Only the CPU's generator is used, and its state is put back afterwards.
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)
        model = _new_model(tokenizer, classes, width=width, layers=layers, dropout=dropout)
        history = _fit(model, encoded, held_out, recipe, progress)
    return TrainedClassifier(model, tokenizer, history[-1]["accuracy"], history, time.perf_counter() - start)


def train_tokenizer(texts: Sequence[str], *, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Learn a lower-casing WordPiece vocabulary and return it as a tokenizer with BERT's template.

    Arguments:
        texts: to learn the word pieces from; the same texts give the same vocabulary.
        vocab_size: number of entries at most; special tokens and single characters are always among them.
        max_length: tokens a text is cut to when truncation is asked for.
    """
    vocabulary = _word_pieces(texts, vocab_size)
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=UNK))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        pair=f"{CLS} $A {SEP} $B:1 {SEP}:1",
        special_tokens=[(token, vocabulary[token]) for token in (CLS, SEP)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token=PAD,
        unk_token=UNK,
        cls_token=CLS,
        sep_token=SEP,
        mask_token=MASK,
    )


def _word_pieces(texts: Sequence[str], vocab_size: int) -> dict[str, int]:
    normalizer = normalizers.BertNormalizer(lowercase=True)
    learner = Tokenizer(models.WordPiece(unk_token=UNK))
    learner.normalizer, learner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    characters = sorted({character for text in texts for character in normalizer.normalize_str(text)} - {" "})
    # The trainer numbers "##a", "##b" in the order of a hash map, another one in each run, and breaks ties by these
    # numbers; named beforehand, they are always the same.
    first = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=first, show_progress=False
    )
    learner.train_from_iterator(texts, trainer)
    return dict(sorted(learner.get_vocab().items(), key=lambda item: item[1]))


@dataclass(frozen=True)
class _Recipe:
    batch_size: int
    learning_rate: float
    epochs: int
    seed: int


@dataclass(frozen=True)
class _Rows:
    """Token ids, shape (texts, longest), 0 = [PAD] on the right; lengths and classes, shape (texts,)."""

    ids: Tensor
    lengths: Tensor
    classes: Tensor

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        longest = int(self.lengths[rows].max())
        ids = self.ids[rows, :longest]
        mask = torch.arange(longest) < self.lengths[rows, None]
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": self.classes[rows]}


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} must be at least 1, not {size!r}")
    if sizes["width"] % _HEAD_WIDTH:
        raise InputError(f"width must be a multiple of {_HEAD_WIDTH}, not {sizes['width']!r}")
    if sizes["max_length"] < _SHORTEST:
        raise InputError(
            f"max_length must be at least {_SHORTEST} ([CLS], a token, [SEP]), not {sizes['max_length']!r}"
        )


def _classes(train: TextDataset, test: TextDataset) -> tuple[str, ...]:
    for data in (train, test):
        if not data.labels:
            raise DataError(f"the data set {data.name!r} has no labels; a classifier needs one a text")
    classes = tuple(sorted(set(train.labels or ())))
    if len(classes) < 2:
        raise DataError(
            f"the data set {train.name!r} has the one label {classes[0]!r}; a classifier needs two at least"
        )
    unknown = sorted(set(test.labels or ()) - set(classes))
    if unknown:
        raise DataError(f"the held-out label {unknown[0]!r} is not among the training labels: {', '.join(classes)}")
    return classes


def _encode(tokenizer: PreTrainedTokenizerFast, data: TextDataset, classes: tuple[str, ...]) -> _Rows:
    encoded = tokenizer(list(data.texts), truncation=True)["input_ids"]
    lengths = torch.tensor([len(row) for row in encoded])
    ids = torch.zeros(len(encoded), int(lengths.max()), dtype=torch.long)
    for row, tokens in enumerate(encoded):
        ids[row, : len(tokens)] = torch.tensor(tokens)
    number = {name: index for index, name in enumerate(classes)}
    return _Rows(ids, lengths, torch.tensor([number[label] for label in data.labels or ()]))


def _new_model(
    tokenizer: PreTrainedTokenizerFast, classes: tuple[str, ...], *, width: int, layers: int, dropout: float
) -> BertForSequenceClassification:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // _HEAD_WIDTH,
        intermediate_size=2 * width,
        max_position_embeddings=tokenizer.model_max_length,
        hidden_dropout_prob=dropout,
        # Dropout on attention would force the slow path of scaled_dot_product_attention.
        attention_probs_dropout_prob=0.0,
        initializer_range=_INITIAL_STD,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
    )
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        # What a text is about hangs on its words first; where they stand is learnt as far as it helps.
        model.bert.embeddings.position_embeddings.weight.mul_(_POSITION_SCALE)
    return model


def _fit(
    model: BertForSequenceClassification, train: _Rows, test: _Rows, recipe: _Recipe, progress: bool | None
) -> list[dict[str, float]]:
    """Train in place, leave the model in evaluation mode and return the history."""
    start, generator = time.perf_counter(), torch.Generator().manual_seed(recipe.seed)
    optimizer = _optimizer(model, recipe)
    steps = recipe.epochs * math.ceil(len(train.classes) / recipe.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    history = []
    with tqdm(total=steps, desc="training", unit="step", disable=None if progress is None else not progress) as bar:
        for epoch in range(1, recipe.epochs + 1):
            model.train()
            losses = []
            for rows in _batches(train.lengths, recipe.batch_size, generator):
                losses.append(_step(model, _with_masks(train.batch(rows), generator), optimizer))
                schedule.step()
                bar.update()
            accuracy = _accuracy(model, test)
            bar.set_postfix(accuracy=f"{accuracy:.3f}")
            seconds = time.perf_counter() - start
            history.append(
                {"epoch": epoch, "loss": sum(losses) / len(losses), "accuracy": accuracy, "seconds": seconds}
            )
    optimizer.zero_grad()
    return history


def _optimizer(model: BertForSequenceClassification, recipe: _Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": _WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)


def _rate(step: int, steps: int) -> float:
    """Return the share of the highest learning rate: a linear rise, then a linear fall to nothing."""
    warm_up = max(1.0, _WARM_UP * steps)
    return min((step + 1) / warm_up, max(0.0, (steps - step) / max(1.0, steps - warm_up)))


def _batches(lengths: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield row numbers in random batches of texts of about one length, so that little is padding."""
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[Tensor] = []
    for bucket in order.split(size * _BUCKET_BATCHES):
        batches.extend(bucket[lengths[bucket].argsort()].split(size))
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def _with_masks(batch: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Replace a random part of the tokens of some rows by [MASK]; special tokens stay."""
    ids = batch["input_ids"]
    chosen = torch.rand(len(ids), 1, generator=generator) < _MASKED_ROWS
    rate = torch.rand(len(ids), 1, generator=generator) * _LARGEST_MASK_RATE * chosen
    hidden = (torch.rand(ids.shape, generator=generator) < rate) & (ids >= len(SPECIAL_TOKENS))
    return {**batch, "input_ids": ids.masked_fill(hidden, SPECIAL_TOKENS.index(MASK))}


def _step(model: BertForSequenceClassification, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> float:
    labels = batch.pop("labels")
    loss = F.cross_entropy(model(**batch).logits, labels, label_smoothing=_LABEL_SMOOTHING)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float(loss.detach())


@torch.inference_mode()
def _accuracy(model: BertForSequenceClassification, rows: _Rows) -> float:
    model.eval()
    right = 0
    for chosen in rows.lengths.argsort().split(64):
        batch = rows.batch(chosen)
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(rows.classes)
