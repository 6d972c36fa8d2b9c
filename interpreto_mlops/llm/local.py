"""A HuggingFace model in this process as a language model that is asked questions."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from interpreto_mlops.errors import InputError, RefusalError
from interpreto_mlops.llm.base import Answer, LanguageModel, Price, Prompt
from interpreto_mlops.models.continuations import continued
from interpreto_mlops.models.loading import load_model
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.hiding import storable

# Drawing sets the process's random numbers and reading sets a tokenizer's limits, and both are put back: two threads
# cannot do that at a time.
_ONE_AT_A_TIME = threading.RLock()

Messages = list[dict[str, str]]


class LocalModel(LanguageModel):
    """A causal or encoder-decoder model from a folder, from the HuggingFace hub, or at hand.

    With a chat template in its tokenizer it is asked by that, else by the plain text of system and user, one after the
    other. It takes the most likely token at temperature 0 and draws by the prompt's seed else; one question at a time,
    whatever the number of threads. Model, tokenizer, configuration and random numbers stay as they are.

    Arguments:
        model: a `TextModel`, or a folder or hub id to load it from.
        name: how labels and runs call it; by default the model's own name.

    Raises:
        InputError: a model that writes no text.
        ModelLoadError: nothing there, or a checkpoint that cannot be read.
    """

    price = Price(0.0, 0.0)

    def __init__(self, model: TextModel | str | Path, *, name: str | None = None) -> None:
        self.model = model if isinstance(model, TextModel) else load_model(model)
        if self.model.task != "generation":
            raise InputError(f"{self.model.name!r} writes no text: it does {self.model.task}; give a language model")
        self.name = name or str(self.model.name)

    def __repr__(self) -> str:
        return f"LocalModel({self.name!r})"

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Hashes of weights, configuration and tokenizer, and the numbers they are computed with."""
        tokenizer, network = self.model.tokenizer, self.model.model
        asked_by = json.dumps([tokenizer.chat_template, network.generation_config.to_diff_dict()], default=str)
        return {
            "backend": "local",
            "fingerprint": self.model.fingerprint,
            "asked_by": hashlib.sha256(asked_by.encode()).hexdigest(),
            "dtype": str(network.dtype),
        }

    def count_tokens(self, text: str) -> int:
        """Return how many tokens a text has."""
        return len(self._ids(storable(text), special=False))

    def answer(self, prompt: Prompt) -> Answer:
        """Answer one question.

        Raises:
            RefusalError: a question that is too long for the model or does not fit in memory, or that its chat template
                does not take.
        """
        asked = self._asked(prompt)
        read = self._length(asked)
        options = self._options(prompt, read)
        try:
            with _ONE_AT_A_TIME:
                ((encoding, written),) = continued(self.model, [asked], [None], generation=options)
        except (InputError, torch.OutOfMemoryError) as error:
            raise RefusalError(f"the local model {self.name!r} cannot answer: {error}") from None
        text = encoding.text[encoding.boundary :].strip()
        finish = "length" if len(written) >= options["max_new_tokens"] and written[-1] not in self._ends else "stop"
        return Answer(text, read, len(written), finish)

    def _asked(self, prompt: Prompt) -> str | Messages:
        system, user = storable(prompt.system), self._without_special_tokens(storable(prompt.user))
        if not self.model.tokenizer.chat_template:
            return "\n\n".join(part for part in (system, user) if part)
        both: Messages = [{"role": "system", "content": system}] if system else []
        both.append({"role": "user", "content": user})
        # Some templates know no system.
        one: Messages = [{"role": "user", "content": "\n\n".join(part for part in (system, user) if part)}]
        for messages in (both, one):
            if self._templated(messages) is not None:
                return messages
        raise RefusalError(f"the chat template of {self.name!r} takes no question of a user")

    def _templated(self, messages: Messages) -> str | None:
        try:
            return str(self.model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        # A template is a program of the tokenizer's author: it may raise anything.
        except Exception:  # noqa: BLE001
            return None

    def _length(self, asked: str | Messages) -> int:
        if isinstance(asked, str):
            return max(1, len(self._ids(asked, special=True)))
        return max(1, len(self._ids(self._templated(asked) or "", special=False)))

    def _ids(self, text: str, *, special: bool) -> Sequence[int]:
        with _ONE_AT_A_TIME:
            return self.model.tokens.tokenized([text], special=special)["input_ids"][0]  # type: ignore[no-any-return]

    def _options(self, prompt: Prompt, read: int) -> dict[str, Any]:
        """Arguments of `generate`; an answer is no longer than what the model has room for."""
        most, room = self.model.max_length, prompt.max_tokens
        if most is not None:
            two_sided = bool(self.model.model.config.is_encoder_decoder)
            room = min(room, most if two_sided else most - read + 1)
            if read > most or room < 1:
                raise RefusalError(f"a question of {read} tokens is too long for {self.name!r}, which takes {most}")
        options: dict[str, Any] = {"max_new_tokens": room, "num_beams": 1, "do_sample": prompt.temperature > 0}
        if prompt.temperature > 0:
            options.update(temperature=float(prompt.temperature), seed=prompt.seed)
        return options

    @property
    def _ends(self) -> Sequence[int]:
        ends = self.model.model.generation_config.eos_token_id
        return [] if ends is None else ends if isinstance(ends, list) else [ends]

    def _without_special_tokens(self, text: str) -> str:
        """Break what the tokenizer would take for special tokens: a question cannot end its own message."""
        pattern = self._special
        for _ in range(len(text)):
            if pattern is None or not pattern.search(text):
                break
            text = pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
        return text

    @cached_property
    def _special(self) -> re.Pattern[str] | None:
        tokenizer = self.model.tokenizer
        added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        tokens = {token for token in (*tokenizer.all_special_tokens, *added) if len(token) > 1}
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))) if tokens else None
