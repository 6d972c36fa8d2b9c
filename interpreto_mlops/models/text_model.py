"""A HuggingFace model with its tokenizer, as the rest of the package sees it. Neither is ever changed."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, modeling_utils

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.encoding import Encoding, Ids
from interpreto_mlops.models.execution import Execution
from interpreto_mlops.models.fingerprint import config_sha256, fingerprint, tokenizer_sha256
from interpreto_mlops.models.heads import find_plain_head
from interpreto_mlops.models.tokenizing import UNSET_LENGTH, TextTokens

if TYPE_CHECKING:
    from interpreto_mlops.models.engine import Engine

# Held while modules are put into eval mode or back; a lock of its own would keep a model from being copied.
_MODES = threading.Lock()

_TAKES_POSITIONS_BY_ROW = hasattr(modeling_utils, "slice_logits_to_keep")


class TextModel:
    """A HuggingFace model and its tokenizer.

    Arguments:
        model: any `PreTrainedModel`; it stays on its device, in its dtype, and in its train or eval mode.
        tokenizer: the model's tokenizer.
        name: how runs and registered dictionaries call the model; by default the end of its path.
        uri: where the model can be loaded from again, pinned to a version.
        model_id: MLflow's id of the logged model, when it has one.
        autocast: `bfloat16` or `float16` to score and differentiate under torch's autocast; the weights stay as they
            are, the full and the empty text are scored in the model's own dtype. By default all is.
        compile: whether scores of token ids run through `torch.compile`, which takes a minute to begin with (on a CPU
            it needs a C++ compiler); the model itself stays as it is. Gradients are not compiled.
        token_budget: the most tokens of a batch, or `auto` for what is found to be fastest; see `Engine`.
        prefix_reuse: whether a decoder computes what rows have in common with their text once; see `Engine`.

    Raises:
        InputError: the tokenizer has more entries than the model has embeddings, or an argument cannot be used.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str | None = None,
        uri: str | None = None,
        model_id: str | None = None,
        autocast: str | None = None,
        compile: bool = False,
        token_budget: int | str | None = None,
        prefix_reuse: bool | str = "auto",
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        path = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self.uri = uri or path
        self.name = name or path.rstrip("/").split("/")[-1]
        self.model_id = model_id
        self.execution = Execution(autocast, compile)
        self._evaluating = 0
        self._training: list[torch.nn.Module] = []
        self._engine_options = {"token_budget": token_budget, "prefix_reuse": prefix_reuse}
        rows = self.embedding.weight.shape[0]
        if len(tokenizer) > rows:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} entries but the model {self.name!r} only {rows} embeddings; "
                "they do not belong together"
            )

    def __repr__(self) -> str:
        return f"TextModel({self.name!r}, {type(self.model).__name__}, {self.device})"

    @property
    def device(self) -> torch.device:
        """The device of the embeddings, where inputs go; where they run, of embeddings that accelerate offloads."""
        device = self.embedding.weight.device
        runs_on = getattr(getattr(self.embedding, "_hf_hook", None), "execution_device", None)
        return torch.device(runs_on) if device.type == "meta" and runs_on is not None else device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the embeddings."""
        return self.embedding.weight.dtype

    @cached_property
    def embedding(self) -> torch.nn.Embedding:
        """The module that turns token ids into embeddings (the encoder's, for an encoder-decoder)."""
        network: Any = self.model
        if network.config.is_encoder_decoder:
            return self._embedding_of(network.get_encoder())
        module = self._embedding_of(network)
        # T5's encoder alone has a module of its own on the same weights, and the model names the unused one.
        own = getattr(network.get_encoder(), "embed_tokens", None) if hasattr(network, "get_encoder") else None
        return own if own is not None and getattr(own, "weight", None) is module.weight else module

    @property
    def autocast(self) -> str | None:
        """The half precision in which forward passes run, or None."""
        return self.execution.autocast

    @property
    def arithmetic(self) -> dict[str, Any]:
        """How the model computes, as results record it: `dtype`, and `autocast` and `compile` where they are used."""
        return {"dtype": str(self.dtype).split(".")[-1], **self.execution.recorded}

    def call(self, module: torch.nn.Module, inputs: Mapping[str, Any]) -> Any:
        """Call the model, or a part of it, on its inputs: under autocast or compiled where that was asked for."""
        return self.execution.call(module, dict(inputs))

    @cached_property
    def vocabulary(self) -> int:
        """How many tokens a language model gives logits for."""
        head = self.model.get_output_embeddings()
        rows = getattr(getattr(head, "weight", None), "shape", None)
        return int((rows or self.embedding.weight.shape)[0])

    @cached_property
    def decoder_embedding(self) -> torch.nn.Embedding:
        """The module that embeds the decoder's tokens, of an encoder-decoder."""
        network: Any = self.model
        return self._embedding_of(network.get_decoder())

    def _embedding_of(self, part: Any) -> torch.nn.Embedding:
        # FSMT's encoder and decoder have the module, but not the function that returns it.
        find = getattr(part, "get_input_embeddings", lambda: getattr(part, "embed_tokens", None))
        module: Any = find()
        if not isinstance(getattr(module, "weight", None), torch.Tensor):
            raise InputError(f"the model {self.name!r} has no token embeddings, so it is not a text model")
        return module  # type: ignore[no-any-return]

    @cached_property
    def engine(self) -> Engine:
        """The engine that runs the model; all methods and metrics of this model share it."""
        # The engine is built on this class, so the import cannot stand at the top.
        from interpreto_mlops.models.engine import Engine

        return Engine(self, **self._engine_options)  # type: ignore[arg-type]

    @property
    def task(self) -> str:
        """What the model does: `classification`, `token_classification`, `generation`, or `encoder` without a head."""
        if self._is("ForSequenceClassification"):
            return "classification"
        if self._is("ForTokenClassification"):
            return "token_classification"
        return "generation" if self.model.can_generate() else "encoder"

    def _is(self, ending: str) -> bool:
        return any(base.__name__.endswith(ending) for base in type(self.model).__mro__)

    @cached_property
    def is_causal(self) -> bool:
        """Whether every position sees only itself and those before it."""
        return _is_causal(self.model)

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes, by id."""
        names = {int(i): str(label) for i, label in (self.model.config.id2label or {}).items()}
        return tuple(names.get(i, f"LABEL_{i}") for i in range(self.model.config.num_labels or 0))

    @cached_property
    def fingerprint(self) -> str:
        """The sha256 of configuration, weights and tokenizer at the time of the first call."""
        return fingerprint(self.model, self.tokenizer)

    @property
    def identity(self) -> dict[str, str]:
        """Hashes of the configuration and the tokenizer alone, which say what of a fingerprint is another."""
        return {
            "config_sha256": config_sha256(self.model),
            "tokenizer_sha256": tokenizer_sha256(self.tokenizer),
        }

    @cached_property
    def accepts(self) -> frozenset[str]:
        """The names of the arguments of the model's forward."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    @cached_property
    def max_length(self) -> int | None:
        """The largest number of tokens that the model takes, or None when nothing limits it."""
        limits = [self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None)]
        for name, module in self.model.named_modules():
            if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
                # RoBERTa and its kin start counting after the padding index.
                offset = 0 if module.padding_idx is None else module.padding_idx + 1
                limits.append(module.num_embeddings - offset)
        known = [int(limit) for limit in limits if limit is not None and 0 < limit < UNSET_LENGTH]
        return min(known) if known else None

    @cached_property
    def fill_id(self) -> int:
        """A valid id for the end of short rows, under attention mask 0."""
        for candidate in (self._padding_id, self.tokenizer.pad_token_id):
            if candidate is not None and 0 <= candidate < self.embedding.weight.shape[0]:
                return int(candidate)
        return 0

    @property
    def _padding_id(self) -> int | None:
        """The id by which the model itself knows padding; the tokenizer's may be another one."""
        padding: int | None = getattr(self.model.config, "pad_token_id", None)
        return padding

    @property
    def pools_by_padding(self) -> bool:
        """Whether the head needs a padding id to find the end of a row, and the configuration has none."""
        return self._padding_id is None and isinstance(getattr(self.model, "score", None), torch.nn.Linear)

    def ids_to_show(self, original: Ids, changed: Ids) -> Ids:
        """Return the ids that the model may see when it computes on `changed`: those, or the original ones.

        A padding id put in place of a token would move the pooled position of decoder classifiers and the position ids
        of RoBERTa's kin; then the model sees the original ids, and the changed embeddings come in by a hook.
        """
        return original if self.rows_not_shown(original, [changed])[0] else changed

    def rows_not_shown(self, original: Ids, rows: Sequence[Ids] | Ids) -> list[bool]:
        """Return in the place of which rows the model sees the original ids; see `ids_to_show`."""
        padding = self._padding_id
        if padding is None:
            return [False] * len(rows)
        if isinstance(rows, np.ndarray) and rows.shape[1] == len(original):
            moved: list[bool] = ((rows == padding) & (original != padding)).any(axis=1).tolist()
            return moved
        return [len(row) == len(original) and bool(((row == padding) & (original != padding)).any()) for row in rows]

    @cached_property
    def decoder_start_id(self) -> int:
        """The token that an encoder-decoder's decoder starts with.

        Raises:
            InputError: the configurations name none.
        """
        for source in (getattr(self.model, "generation_config", None), self.model.config):
            for name in ("decoder_start_token_id", "bos_token_id"):
                if (value := getattr(source, name, None)) is not None:
                    return int(value)
        raise InputError(f"the configuration of {self.name!r} names no token that its decoder starts with")

    @cached_property
    def tokens(self) -> TextTokens:
        """How the tokenizer turns texts into encodings for this model."""
        return TextTokens(self.tokenizer, self.max_length, takes_segments="token_type_ids" in self.accepts)

    def encode(self, texts: Iterable[str | tuple[str, str]], *, first: int = 0) -> Iterator[Encoding]:
        """Tokenise texts lazily, as `TextTokens.encode` does, cutting those that are longer than the model takes.

        Raises:
            InputError: something other than a string among the texts, or one string instead of a list of them.
        """
        return self.tokens.encode(texts, first=first)

    def inputs(self, encodings: Sequence[Encoding], ids: Sequence[Any] | None = None) -> dict[str, torch.Tensor]:
        """Pad rows on the right into the model's inputs, on its device.

        Arguments:
            encodings: the text behind each row.
            ids: the token ids of each row when they are not those of its text; each of its own length.

        Returns:
            `input_ids` and `attention_mask`, shape (rows, tokens), and `token_type_ids` where the model takes them.
        """
        rows = [encoding.ids for encoding in encodings] if ids is None else ids
        width = max(len(row) for row in rows)
        padded = np.full((len(rows), width), self.fill_id, dtype=np.int64)
        mask = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            padded[i, : len(row)] = row
            mask[i, : len(row)] = 1
        batch = {"input_ids": padded, "attention_mask": mask}
        if encodings[0].token_type_ids is not None:
            segments = np.zeros_like(padded)
            for i, (encoding, row) in enumerate(zip(encodings, rows, strict=True)):
                assert encoding.token_type_ids is not None
                segments[i, : len(row)] = encoding.token_type_ids[: len(row)]
            batch["token_type_ids"] = segments
        return {name: torch.from_numpy(array).to(self.device) for name, array in batch.items()}

    def with_positions(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add position ids that are right under left padding, for causal models whose forward takes them.

        Encoders of RoBERTa's kind count positions themselves, from the padding id, and get none.
        """
        causal = "position_ids" in self.accepts and self.is_causal
        mask = batch.get("attention_mask")
        if not causal or mask is None or "position_ids" in batch or bool(mask[:, 0].all()):
            return batch
        return {**batch, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold every module in eval mode, and put each one's own mode back when the last thread is done."""
        with _MODES:
            self._evaluating += 1
            if self._evaluating == 1:
                self._training = [module for module in self.model.modules() if module.training]
                for module in self._training:
                    module.training = False
        try:
            yield
        finally:
            with _MODES:
                self._evaluating -= 1
                if not self._evaluating:
                    for module in self._training:
                        module.training = True

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold parameters out of the graph of gradients, which is some per cent faster, and put their flags back."""
        # What an offloading hook has loaded under inference mode could not be put back, and needs no gradients.
        wanted = [each for each in self.model.parameters() if each.requires_grad and not each.is_inference()]
        for parameter in wanted:
            parameter.requires_grad = False
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad = True

    @contextmanager
    def embeddings_replaced(self, embeddings: torch.Tensor, module: torch.nn.Module | None = None) -> Iterator[None]:
        """Make the embedding module return `embeddings`, shape (rows, tokens, width), whatever ids it is given.

        The model still sees the original ids, which pooling and position counting need. `module` is another one than
        that of the input, such as the decoder's. Where both are one, it is called for the encoder first.
        """
        calls: list[int] = []
        first = int(module is self.embedding)

        def replaced(_module: torch.nn.Module, arguments: Any, found: torch.Tensor) -> torch.Tensor | None:
            calls.append(len(calls))
            if calls[-1] < first:
                return None
            # A row of source and decoder ids may be longer than what the decoder is given; Longformer's kin lengthen
            # rows themselves, to a multiple of their window. And the result is a copy, which CTRL changes in place.
            rows, width = (arguments[0] if arguments else found).shape[:2]
            # XLNet turns rows and places about, which a square batch would hide.
            if rows != len(embeddings) or self.model.config.model_type == "xlnet":
                raise InputError(f"{self.name!r} does not embed its rows one by one, so embeddings cannot be put in")
            return torch.cat([embeddings[:, :width], found[:, embeddings.shape[1] : width]], dim=1)

        handle = (module or self.embedding).register_forward_hook(replaced)
        try:
            with self.execution.hooked():
                yield
        finally:
            handle.remove()
        if len(calls) <= first:
            raise InputError(f"{self.name!r} does not use its embedding module, so embeddings cannot be put in")

    def logits_at(self, batch: dict[str, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
        """Run a causal language model for the logits at some positions of each row only.

        Arguments:
            batch: its inputs.
            positions: shape (rows, k).

        Returns:
            Shape (rows, k, vocabulary), in the model's dtype.
        """
        index = positions.to(self.device)
        arguments = self._decoding(batch)
        if "logits_to_keep" not in self.accepts:
            return torch.take_along_dim(self.call(self.model, arguments).logits, index[..., None], dim=1)
        # The union serves every release of transformers; rows that differ cost some logits that nobody reads.
        union, place = index.unique(return_inverse=True)
        if _TAKES_POSITIONS_BY_ROW and union.numel() > index.shape[1]:
            return self.call(self.model, {**arguments, "logits_to_keep": index}).logits  # type: ignore[no-any-return]
        kept = self.call(self.model, {**arguments, "logits_to_keep": union}).logits
        return torch.take_along_dim(kept, place[..., None], dim=1)

    def hidden_at(self, batch: dict[str, torch.Tensor], positions: torch.Tensor) -> torch.Tensor:
        """Run a causal language model without its head, for the last hidden states at some positions of each row.

        Arguments:
            batch: its inputs.
            positions: shape (rows, k).

        Returns:
            Shape (rows, k, width).
        """
        hidden = self.call(self.model.base_model, self._decoding(batch)).last_hidden_state
        return torch.take_along_dim(hidden, positions.to(hidden.device)[..., None], dim=1)

    def _decoding(self, batch: dict[str, Any]) -> dict[str, Any]:
        arguments = self.with_positions(batch)
        return {**arguments, "use_cache": False} if "use_cache" in self.accepts else arguments

    @cached_property
    def plain_head(self) -> torch.nn.Linear | None:
        """The head of a causal language model when its logits are that linear layer of the last hidden states.

        Some models scale, cap or shift their logits; it is tried once, on a few tokens.
        """
        return find_plain_head(self)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of token ids, shape (..., tokens, width), without any hook on the module.

        Raises:
            InputError: the module returns something else, as that of quantised I-BERT does.
        """
        found: Any = self.embedding.forward(ids)
        if not isinstance(found, torch.Tensor):
            raise InputError(f"the embedding module of {self.name!r} returns a {type(found).__name__}, not a tensor")
        return found


def _is_causal(model: PreTrainedModel) -> bool:
    """Whether a model without an encoder attends to the left only; encoders number positions by themselves."""
    if model.config.is_encoder_decoder:
        return False
    return bool(getattr(model.config, "is_decoder", False)) or model.can_generate() or _has_causal_attention(model)


def _has_causal_attention(model: PreTrainedModel) -> bool:
    flags = [bool(module.is_causal) for module in model.modules() if hasattr(module, "is_causal")]
    return bool(flags) and all(flags)
