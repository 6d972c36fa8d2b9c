"""Rows, targets and batches of concept importance, held to single forward passes with plain hooks."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import (
    BertConfig,
    BertForTokenClassification,
    ConvBertConfig,
    ConvBertForSequenceClassification,
    PreTrainedModel,
)

from interpreto_mlops.concepts import (
    ModelWithSplitPoints,
    PCAConcepts,
    TopKSAEConcepts,
    concept_importance,
    local_importance,
)
from interpreto_mlops.concepts.importance import frame, variants
from interpreto_mlops.concepts.interventions import steer
from interpreto_mlops.errors import OutOfMemoryError
from interpreto_mlops.models.text_model import TextModel
from tests.attributions.language_models import language_model
from tests.conftest import word_tokenizer
from tests.models.architectures import random_model

Floats = npt.NDArray[np.float64]
MakeModel = Callable[..., TextModel]
N = 4
SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "num_labels": 3,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 32,
}


def curved(build: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model whose random weights are large enough for its outputs to differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(6.0)
    return model


def fitted(split: ModelWithSplitPoints, texts: list[str], **options: Any) -> PCAConcepts:
    (rows,) = split.get_activations(texts, progress=False, **options).values()
    return PCAConcepts(n_concepts=min(N, len(rows))).fit(rows, progress=False)


def hooked(module: torch.nn.Module, change: Callable[[torch.Tensor], torch.Tensor], run: Callable[[], Any]) -> Any:
    """Run with the module's output, of one text without padding, changed by a plain hook."""

    def replace(_module: object, _args: object, output: Any) -> Any:
        tensor = output[0] if isinstance(output, tuple) else output
        moved = change(tensor[0].clone())[None]
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = module.register_forward_hook(replace)
    try:
        return run()
    finally:
        handle.remove()


def of_tokens(
    dictionary: PCAConcepts, kept: torch.Tensor, concept: int, *, keep_error: bool = True
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Set one concept (none for -1) to zero in the rows of some tokens."""

    def change(output: torch.Tensor) -> torch.Tensor:
        codes = dictionary.encode(output[kept])
        other = codes.clone()
        if concept >= 0:
            other[:, concept] = 0.0
        start = dictionary.decode(codes) if keep_error else output[kept]
        output[kept] += dictionary.decode(other) - start
        return output

    return change


@pytest.mark.parametrize("keep_error", [True, False])
def test_with_and_without_the_error_term(keep_error: bool, tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    network, dictionary = split.model.model, fitted(split, texts)
    options = {"targets": 2, "keep_error": keep_error}
    ablations = list(local_importance(split, dictionary, texts, method="ablation", **options))
    gradients = list(local_importance(split, dictionary, texts, method="gradient", **options))
    for encoding, ablation, gradient in zip(split.model.encode(texts), ablations, gradients, strict=True):
        ids, kept = torch.from_numpy(encoding.ids)[None], torch.from_numpy(~encoding.special)

        def score(change: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor = ids) -> torch.Tensor:
            block = network.bert.encoder.layer[1]
            return hooked(block, change, lambda: network(input_ids=ids).logits[0, 2])  # type: ignore[no-any-return]

        with torch.no_grad():
            full = score(of_tokens(dictionary, kept, -1, keep_error=keep_error))
            without = [score(of_tokens(dictionary, kept, i, keep_error=keep_error)) for i in range(N)]
        assert ablation.scores[0] == pytest.approx(full.item(), abs=1e-5)
        assert gradient.scores[0] == pytest.approx(full.item(), abs=1e-5)
        np.testing.assert_allclose(ablation.totals[0], [(full - each).item() for each in without], atol=1e-5)

        leaves: list[torch.Tensor] = []

        def at_codes(
            output: torch.Tensor, kept: torch.Tensor = kept, leaves: list[torch.Tensor] = leaves
        ) -> torch.Tensor:
            codes = dictionary.encode(output[kept].detach()).requires_grad_(True)
            leaves.append(codes)
            decoded = dictionary.decode(codes)
            error = (output[kept] - decoded).detach() if keep_error else torch.zeros(())
            out = output.detach().clone()
            out[kept] = decoded + error
            return out

        (by_codes,) = torch.autograd.grad(score(at_codes), leaves[0])
        assert gradient.values is not None
        np.testing.assert_allclose(gradient.values[0], by_codes.double().numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["mean", "sum", "first", "last"])
def test_a_row_of_many_tokens_moves_them_as_it_was_made(
    aggregation: str, tiny_model: MakeModel, texts: list[str]
) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    network = split.model.model
    dictionary = fitted(split, texts, granularity="sample", aggregation=aggregation)
    found = list(local_importance(split, dictionary, texts, method="ablation", targets=0))
    slopes = list(local_importance(split, dictionary, texts, method="gradient", targets=0))
    for encoding, local, slope in zip(split.model.encode(texts), found, slopes, strict=True):
        ids, places = torch.from_numpy(encoding.ids)[None], np.flatnonzero(~encoding.special)
        chosen = {"first": places[:1], "last": places[-1:]}.get(aggregation, places)
        share = 1 / len(places) if aggregation == "sum" else 1.0

        def score(codes_of: Callable[[torch.Tensor], torch.Tensor], places=places, chosen=chosen, share=share, ids=ids):
            def change(output: torch.Tensor) -> torch.Tensor:
                row = output[chosen].sum(0) if aggregation == "sum" else output[chosen].mean(0)
                codes = dictionary.encode(row[None])
                change = dictionary.decode(codes_of(codes)) - dictionary.decode(codes)
                output[chosen] += share * change[0]
                return output

            with torch.no_grad():
                return hooked(network.bert.encoder.layer[1], change, lambda: network(input_ids=ids).logits[0, 0]).item()

        full = score(lambda codes: codes)
        for i in range(dictionary.n_concepts):
            bump = torch.eye(dictionary.n_concepts)[i]
            assert local.totals[0, i] == pytest.approx(full - score(lambda z, b=bump: z * (1 - b)), abs=2e-5)
            step = 1e-2 * float(np.abs(local.codes).max())
            ends = [score(lambda z, by=sign * step * bump: z + by) for sign in (1, -1)]
            rise = (ends[0] - ends[1]) / (2 * step)
            assert slope.totals[0, i] == pytest.approx(rise, rel=0.05, abs=1e-4)


def test_labels_of_tokens_by_plain_hooks_and_texts_without_any(texts: list[str]) -> None:
    network = curved(lambda: BertForTokenClassification(BertConfig(**SMALL)))
    split = ModelWithSplitPoints(TextModel(network, word_tokenizer(), name="tagger"), [1])
    dictionary = fitted(split, texts)
    found = list(local_importance(split, dictionary, [texts[0], "", texts[1]], method="ablation"))
    assert [local.index for local in found] == [0, 2]  # nothing of an empty text has a label
    for local, text in zip(found, texts[:2], strict=True):
        (encoding,) = split.model.encode([text])
        ids, kept = torch.from_numpy(encoding.ids)[None], torch.from_numpy(~encoding.special)

        def logits(concept: int, ids: torch.Tensor = ids, kept: torch.Tensor = kept) -> torch.Tensor:
            block = network.bert.encoder.layer[1]
            with torch.no_grad():
                out = hooked(block, of_tokens(dictionary, kept, concept), lambda: network(input_ids=ids).logits[0])
            return out[kept]  # type: ignore[no-any-return]

        full = logits(-1)
        best = full.argmax(-1, keepdim=True)
        assert [target.id for target in local.targets] == best[:, 0].tolist()
        for i in range(N):
            np.testing.assert_allclose(local.totals[:, i], (full - logits(i)).gather(1, best)[:, 0], atol=2e-5)


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_the_source_of_an_encoder_decoder_by_plain_hooks(architecture: str) -> None:
    model = language_model(architecture, bos=True)
    split = ModelWithSplitPoints(model, [0])
    sources = ["the food was great", "we loved the soup and the place"]
    answer = model.tokenizer("very good", add_special_tokens=False)["input_ids"]
    dictionary = fitted(split, sources)
    found = list(local_importance(split, dictionary, sources, method="ablation", targets=[answer] * 2))
    module = model.model.get_submodule(split.split_points[0])
    for local, text in zip(found, sources, strict=True):
        (encoding,) = model.encode([text])
        ids, kept = torch.from_numpy(encoding.ids)[None], torch.from_numpy(~encoding.special)
        decoder = torch.tensor([[model.decoder_start_id, *answer[:-1]]])

        def logits(
            concept: int, ids: torch.Tensor = ids, kept: torch.Tensor = kept, decoder: torch.Tensor = decoder
        ) -> torch.Tensor:
            def run() -> torch.Tensor:
                return model.model(input_ids=ids, decoder_input_ids=decoder, use_cache=False).logits[0]  # type: ignore[no-any-return]

            with torch.no_grad():
                out = hooked(module, of_tokens(dictionary, kept, concept), run)
            return out[torch.arange(2), answer]  # type: ignore[no-any-return]

        full = logits(-1)
        np.testing.assert_allclose(local.scores, full, rtol=1e-5)
        for i in range(N):
            np.testing.assert_allclose(local.totals[:, i], full - logits(i), atol=3e-5)
        assert np.abs(local.totals).max() > 1e-3


@pytest.mark.parametrize("method", ["gradient_x_activation", "ablation"])
def test_padding_that_changes_answers_is_avoided(method: str, texts: list[str]) -> None:
    config = ConvBertConfig(**SMALL, embedding_size=32)
    model = TextModel(curved(lambda: ConvBertForSequenceClassification(config)), word_tokenizer(), name="conv")
    split = ModelWithSplitPoints(model, [1], engine="hooks")
    dictionary = fitted(split, texts)
    together = list(local_importance(split, dictionary, texts, method=method))
    for text, local in zip(texts, together, strict=True):
        (alone,) = local_importance(split, dictionary, [text], method=method)
        np.testing.assert_allclose(local.totals, alone.totals, atol=1e-6)


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "shapley", "sobol"])
def test_little_memory_changes_nothing(
    method: str, tiny_model: MakeModel, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    dictionary = fitted(split, texts)
    plenty = concept_importance(split, dictionary, texts * 3, method=method, progress=False)
    monkeypatch.setattr(frame, "_WINDOW_NUMBERS", 1)
    monkeypatch.setattr(variants, "_MASK_NUMBERS", 1)
    little = concept_importance(split, dictionary, texts * 3, method=method, progress=False)
    np.testing.assert_allclose(little.values, plenty.values, rtol=1e-3, atol=1e-5)
    assert little.n_texts == plenty.n_texts


@pytest.mark.parametrize("method", ["gradient_x_activation", "ablation", "integrated_gradients"])
def test_batches_that_do_not_fit_in_memory_are_halved(method: str, tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    dictionary, sizes = fitted(split, texts), list[int]()
    plenty = list(local_importance(split, dictionary, texts, method=method))
    most = 2
    failed: list[weakref.ref[torch.Tensor]] = []

    def scarce(_module: object, _args: object, output: torch.Tensor) -> None:
        sizes.append(len(output))
        # What a batch that failed has taken is given back before the next one starts.
        assert all(each() is None for each in failed)
        if len(output) > most:
            failed.append(weakref.ref(output))
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = split.model.model.bert.encoder.layer[2].register_forward_hook(scarce)
    found = list(local_importance(split, dictionary, texts, method=method))
    for local, expected in zip(found, plenty, strict=True):
        np.testing.assert_allclose(local.totals, expected.totals, atol=1e-6 * max(1.0, np.abs(expected.scores).max()))
    assert max(sizes) > most
    most = 0
    with pytest.raises(OutOfMemoryError, match=r"text 2 with \d+ tokens does not fit in memory"):
        list(local_importance(split, dictionary, texts, method=method))
    handle.remove()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_callers_modes_change_nothing(mode: Any, tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    dictionary = fitted(split, texts)
    for method in ("gradient_x_activation", "integrated_gradients", "ablation"):
        plain = list(local_importance(split, dictionary, texts, method=method))
        split.model.model.requires_grad_(False)
        with mode():
            found = list(local_importance(split, dictionary, texts, method=method))
            assert torch.is_grad_enabled() == (mode is torch.enable_grad)
            assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not any(parameter.requires_grad for parameter in split.model.model.parameters())
        split.model.model.requires_grad_(True)
        for local, expected in zip(found, plain, strict=True):
            np.testing.assert_array_equal(local.totals, expected.totals)


def of_head(dictionary: PCAConcepts, weight: torch.Tensor, classes: list[int]) -> Floats:
    """How much one unit of each concept moves logits through a linear head, shape (classes, concepts)."""
    moved = weight.detach()[classes].double() @ dictionary.dictionary.double().T * dictionary.scale.double()
    return np.asarray(moved.numpy())


@pytest.mark.parametrize("method", ["gradient_x_activation", "ablation", "integrated_gradients", "shapley"])
@pytest.mark.parametrize("mode", ["logits", "log_softmax"])
def test_what_the_head_of_a_language_model_reads(method: str, mode: str) -> None:
    model = language_model("llama")
    split = ModelWithSplitPoints(model, ["head"])
    prompts, written = ["the food was great and", "we loved"], [" very good", " it ."]
    dictionary = fitted(split, [a + b for a, b in zip(prompts, written, strict=True)])
    found = list(local_importance(split, dictionary, prompts, method=method, targets=written, inference_mode=mode))
    weight = model.model.get_output_embeddings().weight
    for local, prompt in zip(found, prompts, strict=True):
        start, ids = len(prompt.split()), [target.id for target in local.targets]
        # A token is predicted from the vector of the one before it, by that alone.
        codes = local.codes[start - 1 : start - 1 + len(ids)]
        if mode == "logits":
            np.testing.assert_allclose(local.totals, codes * of_head(dictionary, weight, ids), rtol=1e-4, atol=2e-5)
        assert np.abs(local.totals).max() > 1e-3
        if local.values is not None:
            elsewhere = np.delete(local.values[0], start - 1, axis=0)
            assert not elsewhere.any()
        elif method == "ablation" and mode == "log_softmax":
            exact = dictionary.decode(torch.from_numpy(codes)).double()
            for i in range(dictionary.n_concepts):
                other = torch.from_numpy(codes).clone()
                other[:, i] = 0.0
                change = (dictionary.decode(other).double() - exact) @ weight.detach().double().T
                (encoding,) = model.encode([local.text])
                with torch.no_grad():
                    logits = model.model(input_ids=torch.from_numpy(encoding.ids)[None]).logits[0].double()
                logits = logits[start - 1 : start - 1 + len(ids)]
                lost = logits.log_softmax(-1) - (logits + change).log_softmax(-1)
                np.testing.assert_allclose(local.totals[:, i], lost[range(len(ids)), ids].numpy(), atol=1e-4)


def test_what_the_head_of_a_decoder_reads_that_knows_no_padding(texts: list[str]) -> None:
    network = random_model("gpt2")
    network.config.pad_token_id = None
    split = ModelWithSplitPoints(TextModel(network, word_tokenizer(bos=False), name="no padding"), ["head"])
    dictionary = fitted(split, texts)
    for local in local_importance(split, dictionary, texts, targets=[[0, 2]] * len(texts)):
        expected = local.codes[-1] * of_head(dictionary, network.score.weight, [0, 2])
        np.testing.assert_allclose(local.totals, expected, rtol=1e-4, atol=1e-6)
        assert local.values is not None
        assert not local.values[:, :-1].any()


def test_places_of_an_encoder_are_those_of_its_row_in_every_generation() -> None:
    model = language_model("t5")
    split = ModelWithSplitPoints(model, [0], engine="hooks")
    texts = ["the food was great", "we loved the soup"]
    dictionary = fitted(split, texts)
    inputs = model.inputs(list(model.encode(texts[:1])))
    plain = split.capture(inputs)[split.split_points[0]][0]
    seen: list[torch.Tensor] = []
    block = model.model.get_submodule(split.split_points[0])
    with steer(split, dictionary, {0: 5.0}, positions=[1]):
        handle = block.register_forward_hook(lambda _m, _a, output: seen.append(output[0][0].clone()))
        for _ in range(2):
            model.model.generate(**inputs, max_new_tokens=4, do_sample=False)
        handle.remove()
    assert len(seen) == 2
    for output in seen:
        moved = (output - plain).abs().amax(-1) > 1e-4
        assert moved.tolist() == [False, True, False, False]


def test_a_text_in_lines_says_where_each_concept_counts(tiny_model: Callable[..., TextModel], texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [0])
    rows = split.get_activations(texts, progress=False)[0]
    dictionary = TopKSAEConcepts(n_concepts=12, k=2, n_epochs=1).fit(rows, progress=False)
    (local,) = local_importance(split, dictionary, texts[:1])
    lines = local.to_frame()
    assert set(lines["text"]) == {local.text[start:end] for start, end in local.spans.tolist()}
    sums = lines.groupby("concept")["importance"].sum().reindex(range(12), fill_value=0.0)
    np.testing.assert_allclose(sums, local.totals[0], atol=1e-9)
    line = lines.iloc[3]
    assert line["activation"] == local.codes[line["row"], line["concept"]] > 0
    assert set(lines["name"]) == {local.targets[0].name}
    (whole,) = local_importance(split, dictionary, texts[:1], method="ablation")
    lines = whole.to_frame()
    assert lines["row"].isna().all() == (whole.values is None)
    np.testing.assert_allclose(lines["importance"].sum(), whole.totals.sum())
