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
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.models.tokenizing import check_text
from interpreto_mlops.text.granularity import Spans

DEFAULT_NEW_TOKENS = 20
"""Tokens that are generated when neither the caller nor the model's generation config says how many."""

_WINDOW = 64  # prompts that are generated for together when they have the same length
_OWN_ARGUMENTS = {"inputs", "input_ids", "attention_mask", "inputs_embeds", "decoder_input_ids"}
_CUT_OFF = "\ufffd"
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
    start = _decoder_start(model, options)
    pairs = zip(prompts, continuations, strict=False)
    index = 0
    while window := list(islice(pairs, _WINDOW)):
        given = [ids for _, ids in window]
        for k, ids in enumerate(given, index):
            _check_decoder_length(model, options.get("max_new_tokens", 0) if ids is None else len(ids), k)
        read = [
            _fitted(model, _prompt(model, raw, index + k), _room(model, options, ids), truncation)
            for k, ((raw, _), ids) in enumerate(zip(window, given, strict=True))
        ]
        own = iter(_generate(model, [p for p, ids in zip(read, given, strict=True) if ids is None], options))
        for prompt, ids in zip(read, given, strict=True):
            if ids is not None:
                _warn_of_whole_output(prompt, ids, start)
            yield _joined(model, prompt, next(own) if ids is None else ids, start)
        index += len(window)


def _two_sided(model: TextModel) -> bool:
    return bool(model.model.config.is_encoder_decoder)


def _decoder_start(model: TextModel, options: Mapping[str, Any]) -> list[int]:
    if not _two_sided(model):
        return []
    given = options.get("decoder_start_token_id")
    return [model.decoder_start_id if given is None else given]


def _warn_of_whole_output(prompt: Prompt, target: Ids, start: Sequence[int]) -> None:
    """Warn when a target looks like all that `generate` returns: with the prompt, or the decoder's start token."""
    ahead = np.asarray(start, dtype=np.int64) if start else prompt.ids
    if len(target) > len(ahead) and np.array_equal(target[: len(ahead)], ahead):
        what = "the token that the decoder starts with" if start else "the whole prompt"
        message = f"text {prompt.index}: its target starts with {what}; give the continuation alone"
        warnings.warn(message, TextWarning, stacklevel=2)


def _prompt(model: TextModel, raw: Any, index: int) -> Prompt:
    tokenizer = model.tokenizer
    chat = isinstance(raw, Sequence) and not isinstance(raw, (str, bytes))
    text = _templated(model, raw, index) if chat else raw
    check_text(text, index)
    rows = model.tokens.tokenized([text], special=not chat)
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
    try:
        written = model.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
    # A template is a program of the tokenizer's author: it may raise anything.
    except Exception as error:
        raise InputError(f"text {index} cannot be written by the chat template of {model.name!r}: {error}") from error
    return str(written)


def given_ids(model: TextModel, wanted: Any, index: int) -> Ids:
    """Return a given continuation's token ids, shape (tokens,): a string is tokenised as it stands.

    Raises:
        InputError: neither a string nor token ids of the model.
    """
    if isinstance(wanted, str):
        check_text(wanted, index)
        ids = model.tokens.tokenized([wanted], special=False)["input_ids"][0]
    else:
        ids = wanted.tolist() if hasattr(wanted, "tolist") else wanted
    return _checked_ids(model, ids, index)


def _checked_ids(model: TextModel, ids: Any, index: int) -> Ids:
    rows = (model.decoder_embedding if _two_sided(model) else model.embedding).weight.shape[0]
    if not isinstance(ids, Iterable):
        raise InputError(f"a target or contrast of text {index} must be a string or a list of token ids, not {ids!r}")
    values = list(ids)
    if not values:
        raise InputError(f"a target or contrast of text {index} has no tokens")
    for value in values:
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not 0 <= value < rows:
            raise InputError(f"a target or contrast of text {index} holds {value!r}, which is no token id below {rows}")
    return np.asarray(values, dtype=np.int64)


def _room(model: TextModel, options: Mapping[str, Any], given: Ids | None) -> int | None:
    """Return how many tokens a prompt may have, or None when nothing limits it."""
    if model.max_length is None or _two_sided(model):
        return model.max_length
    new = options.get("max_new_tokens", 1) if given is None else len(given)
    # The last token of a continuation is predicted, never read.
    return int(model.max_length - new + 1)


def _check_decoder_length(model: TextModel, length: int, index: int) -> None:
    if _two_sided(model) and model.max_length is not None and length > model.max_length:
        raise InputError(
            f"the target of text {index} has {length} tokens, more than the {model.max_length} that {model.name!r} "
            "takes"
        )


def _fitted(model: TextModel, prompt: Prompt, room: int | None, truncation: bool) -> Prompt:
    length = len(prompt.ids)
    if room is None or length <= room:
        return prompt
    if not truncation or room < 1:
        remedy = "" if room < 1 else ", or give truncation=True to cut the prompt on the left"
        raise InputError(
            f"text {prompt.index} has {length} tokens and with its target more than the {model.max_length} that "
            f"{model.name!r} takes; shorten {'the target' if room < 1 else 'it'}{remedy}"
        )
    # What the tokenizer put in front stays in front.
    ahead = int(model.tokens.special_places(prompt.ids)[0] and room > 1)
    kept = np.concatenate([np.arange(ahead), np.arange(length - room + ahead, length)]).astype(np.int64)
    message = f"text {prompt.index} is longer than {room} tokens and was cut on the left"
    warnings.warn(message, TextWarning, stacklevel=2)
    offsets = None if prompt.offsets is None else prompt.offsets[kept]
    return Prompt(prompt.text, prompt.index, prompt.ids[kept], offsets, truncated=True)


def generation_arguments(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return arguments of `generate` as a result can keep them.

    Raises:
        InputError: no mapping, a value that is not plain, or a value that asks for something else than one
            continuation.
    """
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"generation must be a mapping of generate's arguments, not {given!r}")
    options = {str(name): _plain(str(name), value) for name, value in (given or {}).items()}
    if taken := sorted(_OWN_ARGUMENTS & set(options)):
        raise InputError(f"generation must not hold {taken[0]!r}: the prompts are given as texts")
    if options.get("num_return_sequences", 1) != 1:
        raise InputError(
            f"one continuation is explained, not {options['num_return_sequences']!r}: num_return_sequences"
        )
    for name, least in (("max_new_tokens", 1), ("max_length", 1), ("seed", 0), ("decoder_start_token_id", 0)):
        value = options.get(name, least)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise InputError(f"generation's {name} must be a whole number of at least {least}, not {value!r}")
    return options


def _plain(name: str, value: Any) -> Any:
    """Turn numpy numbers and tensors into Python's own."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, (list, tuple)):
        return [_plain(name, each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise InputError(f"generation's {name} must be a number, a string or a list of them, not a {type(value).__name__}")


def _generation_options(model: TextModel, generation: Mapping[str, Any] | None) -> dict[str, Any]:
    options = generation_arguments(generation)
    config = model.model.generation_config
    limits = [getattr(config, name, None) for name in ("max_new_tokens", "max_length")]
    if not {"max_new_tokens", "max_length"} & set(options):
        # Older releases of transformers count 20 tokens with the prompt where nothing is said.
        own = limits[0] is not None or limits[1] not in (None, 20)
        options.update({} if own else {"max_new_tokens": DEFAULT_NEW_TOKENS})
    _check_total_length(model, options.get("max_length"))
    if "max_length" not in options and limits[0] is not None:
        options.setdefault("max_new_tokens", limits[0])
    options.setdefault("num_return_sequences", 1)
    if getattr(config, "pad_token_id", None) is None:
        options.setdefault("pad_token_id", model.fill_id)
    return options


def _check_total_length(model: TextModel, asked: int | None) -> None:
    # The last token is predicted, never read; an encoder-decoder's start token counts.
    if asked is not None and model.max_length is not None and asked > model.max_length + 1:
        raise InputError(
            f"generation's max_length {asked} is more than the {model.max_length} that {model.name!r} takes"
        )


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
    arguments = {name: value for name, value in options.items() if name not in {"seed", "max_length"}}
    if "max_length" in options and "max_new_tokens" not in options:
        # A limit of new tokens in the configuration would win over a length that the caller gives.
        ahead = 1 if _two_sided(model) else rows.shape[1]
        if options["max_length"] <= ahead:
            raise InputError(
                f"a prompt of {ahead} tokens leaves no room in generation's max_length {options['max_length']}"
            )
        arguments["max_new_tokens"] = options["max_length"] - ahead
    # Samples depend on the seed and the prompt alone, and the caller's random numbers go on as if nothing had been.
    with model.evaluating(), torch.random.fork_rng(enabled=True), torch.inference_mode():
        torch.manual_seed(int(options.get("seed", 0)) + int(rows.sum()))
        try:
            out = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **arguments)
        except (ValueError, TypeError) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"the model cannot generate with {arguments!r}: {first}") from error
    start = 1 if _two_sided(model) else rows.shape[1]
    ends = _end_ids(network, options)
    return [_until_end(row[start:].cpu().numpy().astype(np.int64), ends) for row in getattr(out, "sequences", out)]


def _end_ids(network: Any, options: Mapping[str, Any]) -> list[int]:
    ends = options.get("eos_token_id", network.generation_config.eos_token_id)
    return [] if ends is None else list(ends) if isinstance(ends, (list, tuple)) else [int(ends)]


def _until_end(ids: Ids, ends: Sequence[int]) -> Ids:
    """Cut what comes after the first end token, which is kept."""
    stops = np.flatnonzero(np.isin(ids, ends))
    return ids[: stops[0] + 1] if len(stops) else ids


def _joined(model: TextModel, prompt: Prompt, target: Ids, start: Sequence[int]) -> tuple[Encoding, Ids]:
    """Put prompt, decoder start (of an encoder-decoder) and continuation into the row that the model is given."""
    every = np.concatenate([prompt.ids, np.asarray(start, dtype=np.int64), target])
    text, spans = continuation_text(model, prompt.ids[: 0 if start else None], target)
    boundary = len(prompt.text)
    offsets = None
    if prompt.offsets is not None:
        offsets = np.concatenate([prompt.offsets, np.full((len(start), 2), boundary), spans + boundary])
    special = model.tokens.special_places(every)
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
    special = model.tokens.special_places(ids)
    spans, start = [], 0
    for k, end in enumerate(ends):
        unfinished = len(whole[k]) - len(head) > end or end == start
        until = end
        if unfinished and not special[k]:
            # A part of a character: its span ends with the token which completes it.
            until = next((later for later in ends[k:] if later > end), end)
        # One that nothing completes is written by the mark that stands for what is cut off.
        lost = start == until and not special[k] and text[start - 1 : start] == _CUT_OFF
        spans.append((start - int(lost), until))
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
