"""Prompts and their continuations as token ids, which are never decoded and read again."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

from interpreto_mlops.errors import InputError, TextWarning
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.text_model import TextModel, check_text
from interpreto_mlops.text.granularity import Spans

DEFAULT_NEW_TOKENS = 20
"""Tokens that are generated when neither the caller nor the model's generation config says how many."""

_WINDOW = 64  # prompts that are generated for together when they have the same length
_CONTEXT = 8  # tokens before a continuation that decide how its first one is written


@dataclass(frozen=True)
class Prompt:
    """A tokenised prompt or source.

    Arguments:
        text: what the user gave, or a conversation as the chat template writes it.
        index: its place in the data set.
        ids: shape (tokens,), special ones included.
        offsets: character spans, shape (tokens, 2), or None.
        truncated: whether it was cut.
    """

    text: str
    index: int
    ids: Ids
    offsets: Spans | None
    truncated: bool = False


def continued(
    model: TextModel,
    prompts: Iterable[Any],
    continuations: Iterable[Ids | None],
    *,
    generation: Mapping[str, Any] | None = None,
    truncation: bool = False,
) -> Iterator[tuple[Encoding, Ids]]:
    """Tie each prompt to its continuation.

    Arguments:
        model: a language model, decoder or encoder-decoder.
        prompts: strings, or conversations (lists of messages with `role` and `content`) for the chat template.
        continuations: for each prompt token ids, or None for what the model generates.
        generation: arguments of `generate`; 20 new tokens where nothing says how many, greedy unless asked otherwise.
        truncation: whether to cut a prompt that is too long on the left, instead of refusing it.

    Yields:
        The encoding of prompt and continuation, and the continuation's ids.

    Raises:
        InputError: a prompt or a continuation that cannot be used; the message names the text.
    """
    options = _generation_options(model, generation)
    pairs = zip(prompts, continuations, strict=False)
    index = 0
    while window := list(islice(pairs, _WINDOW)):
        given = [ids for _, ids in window]
        read = [
            _fitted(model, _prompt(model, raw, index + k), _room(model, options, ids), truncation)
            for k, ((raw, _), ids) in enumerate(zip(window, given, strict=True))
        ]
        own = iter(_generate(model, [p for p, ids in zip(read, given, strict=True) if ids is None], options))
        for prompt, ids in zip(read, given, strict=True):
            yield _joined(model, prompt, next(own) if ids is None else ids)
        index += len(window)


def _prompt(model: TextModel, raw: Any, index: int) -> Prompt:
    tokenizer = model.tokenizer
    chat = isinstance(raw, Sequence) and not isinstance(raw, str)
    text = _templated(model, raw, index) if chat else raw
    check_text(text, index)
    rows = model.tokenized([text], special=not chat)
    ids = np.asarray(rows["input_ids"][0], dtype=np.int64)
    offsets = np.asarray(rows["offset_mapping"][0], dtype=np.int64).reshape(-1, 2) if tokenizer.is_fast else None
    if len(ids) == 0:
        if tokenizer.bos_token_id is None:
            raise InputError(f"text {index} is empty, and the tokenizer has no bos token to start a text with")
        ids = np.asarray([tokenizer.bos_token_id], dtype=np.int64)
        offsets = None if offsets is None else np.zeros((1, 2), dtype=np.int64)
    return Prompt(text, index, ids, offsets)


def _templated(model: TextModel, messages: Sequence[Any], index: int) -> str:
    if not messages or not all(isinstance(message, Mapping) for message in messages):
        raise InputError(f"text {index} must be a string, or a list of messages with 'role' and 'content'")
    if not model.tokenizer.chat_template:
        raise InputError(f"text {index} is a conversation, but the tokenizer of {model.name!r} has no chat template")
    return str(model.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))


def given_ids(model: TextModel, wanted: Any, index: int) -> Ids:
    """Return a given continuation's token ids, shape (tokens,): a string is tokenised as it stands.

    Raises:
        InputError: neither a string nor token ids of the model.
    """
    if isinstance(wanted, str):
        check_text(wanted, index)
        ids = model.tokenized([wanted], special=False)["input_ids"][0]
    else:
        ids = wanted.tolist() if hasattr(wanted, "tolist") else wanted
    return _checked_ids(model, ids, index)


def _checked_ids(model: TextModel, ids: Any, index: int) -> Ids:
    rows = model.embedding.weight.shape[0]
    if not isinstance(ids, Iterable):
        raise InputError(f"the target of text {index} must be a string or a list of token ids, not {ids!r}")
    values = list(ids)
    if not values:
        raise InputError(f"the target of text {index} has no tokens")
    for value in values:
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not 0 <= value < rows:
            raise InputError(f"the target of text {index} holds {value!r}, which is no token id below {rows}")
    return np.asarray(values, dtype=np.int64)


def _room(model: TextModel, options: Mapping[str, Any], given: Ids | None) -> int | None:
    """Return how many tokens a prompt may have, or None when nothing limits it."""
    if model.max_length is None or model.model.config.is_encoder_decoder:
        return model.max_length
    new = options.get("max_new_tokens", 1) if given is None else len(given)
    # The last token of a continuation is predicted, never read.
    return int(model.max_length - new + 1)


def _fitted(model: TextModel, prompt: Prompt, room: int | None, truncation: bool) -> Prompt:
    length = len(prompt.ids)
    if room is None or length <= room:
        return prompt
    if not truncation or room < 1:
        raise InputError(
            f"text {prompt.index} has {length} tokens and with its target more than the {model.max_length} that "
            f"{model.name!r} takes; shorten it, or give truncation=True to cut the prompt on the left"
        )
    # What the tokenizer put in front stays in front.
    ahead = int(model.special_places(prompt.ids)[0] and room > 1)
    kept = np.concatenate([np.arange(ahead), np.arange(length - room + ahead, length)]).astype(np.int64)
    message = f"text {prompt.index} is longer than {room} tokens and was cut on the left"
    warnings.warn(message, TextWarning, stacklevel=2)
    offsets = None if prompt.offsets is None else prompt.offsets[kept]
    return Prompt(prompt.text, prompt.index, prompt.ids[kept], offsets, truncated=True)


def _generation_options(model: TextModel, generation: Mapping[str, Any] | None) -> dict[str, Any]:
    options = dict(generation or {})
    if options.get("num_return_sequences", 1) != 1:
        raise InputError(
            f"one continuation is explained, not {options['num_return_sequences']!r}: num_return_sequences"
        )
    config = getattr(model.model, "generation_config", None)
    if not {"max_new_tokens", "max_length", "max_time"} & set(options):
        options["max_new_tokens"] = getattr(config, "max_new_tokens", None) or DEFAULT_NEW_TOKENS
    if getattr(config, "pad_token_id", None) is None:
        options.setdefault("pad_token_id", model.fill_id)
    return options


def _generate(model: TextModel, prompts: Sequence[Prompt], options: Mapping[str, Any]) -> list[Ids]:
    """Continue prompts, those of the same length together, so that none is padded."""
    found: dict[int, Ids] = {}
    sampled = bool(options.get("do_sample", getattr(model.model.generation_config, "do_sample", False)))
    for length in sorted({len(prompt.ids) for prompt in prompts}):
        group = [k for k, prompt in enumerate(prompts) if len(prompt.ids) == length]
        for batch in [[k] for k in group] if sampled else [group]:
            rows = np.stack([prompts[k].ids for k in batch])
            found.update(zip(batch, _generated(model, rows, options), strict=True))
    for k, ids in found.items():
        if len(ids) == 0:
            raise InputError(f"the model generates nothing for text {prompts[k].index}")
    return [found[k] for k in range(len(prompts))]


def _generated(model: TextModel, rows: Ids, options: Mapping[str, Any]) -> list[Ids]:
    network: Any = model.model
    ids = torch.from_numpy(rows).to(model.device)
    arguments = {name: value for name, value in options.items() if name != "seed"}
    # Samples depend on the seed and the prompt alone, and the caller's random numbers go on as if nothing had been.
    with model.evaluating(), torch.random.fork_rng(enabled=True), torch.inference_mode():
        torch.manual_seed(int(options.get("seed", 0)) + int(rows.sum()))
        try:
            out = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)
        except (ValueError, TypeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"the model cannot generate with {arguments!r}: {first}") from error
    start = 1 if network.config.is_encoder_decoder else rows.shape[1]
    ends = _end_ids(network, options)
    return [_until_end(row[start:].cpu().numpy().astype(np.int64), ends) for row in getattr(out, "sequences", out)]


def _end_ids(network: Any, options: Mapping[str, Any]) -> list[int]:
    ends = options.get("eos_token_id", network.generation_config.eos_token_id)
    return [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]


def _until_end(ids: Ids, ends: Sequence[int]) -> Ids:
    """Cut what comes after the first end token, which is kept."""
    stops = np.flatnonzero(np.isin(ids, ends))
    return ids[: stops[0] + 1] if len(stops) else ids


def _joined(model: TextModel, prompt: Prompt, target: Ids) -> tuple[Encoding, Ids]:
    """Put prompt and continuation into the row that the model is given."""
    if len(target) > len(prompt.ids) and np.array_equal(target[: len(prompt.ids)], prompt.ids):
        message = f"text {prompt.index}: its target starts with the whole prompt; give the continuation alone"
        warnings.warn(message, TextWarning, stacklevel=2)
    two_sided = bool(model.model.config.is_encoder_decoder)
    start = np.asarray([model.decoder_start_id] if two_sided else [], dtype=np.int64)
    every = np.concatenate([prompt.ids, start, target])
    text, spans = continuation_text(model, np.zeros(0, dtype=np.int64) if two_sided else prompt.ids, target)
    boundary = len(prompt.text)
    offsets = None
    if prompt.offsets is not None:
        offsets = np.concatenate([prompt.offsets, np.full((len(start), 2), boundary), spans + boundary])
    special = model.special_places(every)
    special[len(prompt.ids) : len(prompt.ids) + len(start)] = True
    tokens = model.tokenizer.convert_ids_to_tokens(every.tolist())
    encoding = Encoding(
        text=prompt.text + text,
        index=prompt.index,
        ids=every[:-1],
        special=special,
        # A model may have more embeddings than its tokenizer has tokens, and generate one of those.
        tokens=tuple(f"[{i}]" if token is None else token for i, token in zip(every, tokens, strict=True)),
        offsets=offsets,
        truncated=prompt.truncated,
        boundary=boundary,
        prompt_tokens=len(prompt.ids),
    )
    return encoding, target


def continuation_text(model: TextModel, prompt: Ids, ids: Ids) -> tuple[str, Spans]:
    """Write token ids as text, and find where each lies in it.

    Arguments:
        model: whose tokenizer writes.
        prompt: the ids before them, which decide about leading spaces, shape (tokens,).
        ids: shape (tokens,).

    Returns:
        The text without special tokens, and spans, shape (tokens, 2). Tokens that are parts of one character have its
        span.
    """
    before = prompt[-_CONTEXT:].tolist()
    head = _decoded(model, before)
    whole = [_decoded(model, [*before, *ids[: k + 1].tolist()]) for k in range(len(ids))]
    if not whole[-1].startswith(head):
        head, whole = "", [_decoded(model, ids[: k + 1].tolist()) for k in range(len(ids))]
    text = whole[-1][len(head) :]
    ends = [_agreement(written[len(head) :], text) for written in whole[:-1]] + [len(text)]
    ends = np.maximum.accumulate(np.asarray(ends, dtype=np.int64)).tolist()
    spans, start = [], 0
    special = model.special_places(ids)
    for k, end in enumerate(ends):
        if end == start and not special[k]:
            # A part of a character: its span is that of the token which completes it.
            end = next((later for later in ends[k:] if later > start), start)
            spans.append((start, end))
            continue
        spans.append((start, end))
        start = end
    return text, np.asarray(spans, dtype=np.int64).reshape(-1, 2)


def _decoded(model: TextModel, ids: list[int]) -> str:
    return str(model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _agreement(written: str, text: str) -> int:
    """Return how many characters at the start of both are the same."""
    for k, (a, b) in enumerate(zip(written, text, strict=False)):
        if a != b:
            return k
    return min(len(written), len(text))
