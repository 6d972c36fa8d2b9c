"""Concepts changed while the model runs: laws, generation by hand, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from interpreto_mlops.concepts import (
    ConceptDictionary,
    ModelWithSplitPoints,
    NMFConcepts,
    PCAConcepts,
    TopKSAEConcepts,
    ablate,
    intervention_effect,
    local_importance,
    steer,
)
from interpreto_mlops.errors import InputError, IntegrityError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer

MakeModel = Callable[..., TextModel]


@pytest.fixture
def ready(tiny_model: MakeModel, texts: list[str]) -> tuple[ModelWithSplitPoints, ConceptDictionary]:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    rows = split.get_activations(texts, granularity="all_tokens")[1]
    return split, TopKSAEConcepts(n_concepts=8, k=3, n_epochs=5, batch_size=8).fit(rows, progress=False)


@pytest.fixture
def batch(ready: tuple[ModelWithSplitPoints, ConceptDictionary], texts: list[str]) -> dict[str, torch.Tensor]:
    model = ready[0].model
    return model.inputs(list(model.encode(texts)))


def logits(model: TextModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.model(**batch).logits  # type: ignore[no-any-return]


Ready = tuple[ModelWithSplitPoints, ConceptDictionary]


def test_adding_nothing_changes_nothing(ready: Ready, batch: dict[str, torch.Tensor]) -> None:
    split, dictionary = ready
    before = logits(split.model, batch)
    with steer(split, dictionary, {3: 0.0}):
        assert torch.equal(logits(split.model, batch), before)
    with steer(split, dictionary, {3: 1.0}, mode="scale"):
        assert torch.equal(logits(split.model, batch), before)
    assert torch.equal(logits(split.model, batch), before)


@pytest.mark.parametrize(("mode", "value"), [("add", 2.5), ("set", 1.5), ("scale", -3.0)])
def test_activations_move_along_the_direction(
    mode: str, value: float, ready: Ready, batch: dict[str, torch.Tensor]
) -> None:
    split, dictionary = ready
    path = split.split_points[0]
    plain = split.capture(batch)[path]
    with steer(split, dictionary, {3: value, 5: value}, mode=mode):
        moved = split.capture(batch)[path]
    codes = dictionary.encode(plain.flatten(0, 1))
    change = {"add": 0 * codes + value, "set": value - codes, "scale": (value - 1) * codes}[mode]
    direction = dictionary.decode(torch.eye(8)) - dictionary.decode(torch.zeros(8, 8))
    expected = plain.flatten(0, 1) + change[:, [3, 5]] @ direction[[3, 5]]
    torch.testing.assert_close(moved.flatten(0, 1), expected, rtol=1e-4, atol=1e-5)


def test_only_the_positions_are_changed(ready: Ready, batch: dict[str, torch.Tensor]) -> None:
    split, dictionary = ready
    path = split.split_points[0]
    plain = split.capture(batch)[path]
    with steer(split, dictionary, {3: 2.0}, positions=[1, 99]):
        moved = split.capture(batch)[path]
    changed = ((moved - plain).abs().amax(dim=2) > 1e-6).any(dim=0)
    assert changed.tolist() == [place == 1 for place in range(plain.shape[1])]


def test_ablating_is_the_importance_of_that_name(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    for granularity in ("token", "word"):
        rows = split.get_activations(texts, granularity=granularity)[1]
        dictionary = TopKSAEConcepts(n_concepts=8, k=3, n_epochs=5, batch_size=8).fit(rows, progress=False)
        important = list(local_importance(split, dictionary, texts, method="ablation"))
        for concept in range(8):
            effect = intervention_effect(split, dictionary, texts, {concept: 0.0}, mode="set")
            np.testing.assert_allclose(-effect.effects, [local.totals[0, concept] for local in important], atol=1e-5)


def test_the_context_and_the_measurement_agree(ready: Ready, batch: dict[str, torch.Tensor], texts: list[str]) -> None:
    split, dictionary = ready
    before = logits(split.model, batch)
    with steer(split, dictionary, {3: 4.0}):
        # Padding moves, too, and is not seen.
        after = logits(split.model, batch)
    effect = intervention_effect(split, dictionary, texts, {3: 4.0}, targets=1)
    np.testing.assert_allclose(effect.before, before[:, 1].numpy(), atol=1e-5)
    np.testing.assert_allclose(effect.after, after[:, 1].numpy(), atol=1e-4)
    assert effect.changed is not None
    assert effect.changed.tolist() == (before.argmax(1) != after.argmax(1)).tolist()
    assert effect.share_changed == effect.changed.mean()
    low, high = effect.interval
    assert low <= effect.mean <= high
    frame = effect.to_frame()
    assert frame["text"].tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(frame["effect"], frame["after"] - frame["before"])
    tight = intervention_effect(split, dictionary, texts, {3: 4.0}, targets=1, token_budget=1)
    np.testing.assert_allclose(tight.after, effect.after, atol=1e-5)


def test_under_the_head_the_change_is_known(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("distilbert"), ["head"])
    rows = split.get_activations(texts * 3, granularity="sample")["head"]
    dictionary = NMFConcepts(n_concepts=4).fit(rows, progress=False)
    effect = intervention_effect(split, dictionary, texts, {2: 3.0}, targets=0)
    weight = split.model.model.classifier.weight[0].detach()
    expected = 3.0 * float(dictionary.dictionary[2] @ weight * dictionary.scale)
    np.testing.assert_allclose(effect.effects, expected, rtol=1e-3)


def writer() -> TextModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=2, n_positions=64, initializer_range=0.4)
    return TextModel(GPT2LMHeadModel(config).eval(), word_tokenizer(bos=False), name="writer")


def test_generation_is_steered_token_by_token() -> None:
    model = writer()
    split = ModelWithSplitPoints(model, [1])
    texts = ["the food was great and cold", "we loved the soup here"]
    dictionary = PCAConcepts(n_concepts=4).fit(split.get_activations(texts)[1], progress=False)
    ids = model.tokenizer("the food was", return_tensors="pt")["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    plain = model.model.generate(ids, **options)
    with steer(split, dictionary, {0: 9.0}):
        steered = model.model.generate(ids, **options)
    assert not torch.equal(steered, plain)
    direction = (dictionary.dictionary[0] * dictionary.scale * 9.0).detach()
    handle = model.model.transformer.h[1].register_forward_hook(lambda _m, _a, out: out + direction)
    row = ids
    with torch.no_grad():
        for _ in range(6):  # without a cache
            row = torch.cat([row, model.model(row, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    handle.remove()
    assert torch.equal(steered, row)
    assert torch.equal(model.model.generate(ids, **options), plain)
    effect = intervention_effect(split, dictionary, ["the food was"], {0: 9.0}, targets=[" great and"])
    assert len(effect.targets) == 2
    assert effect.changed is None
    assert np.isnan(effect.share_changed)


@pytest.mark.parametrize("places", [[0], [1, 4]])
def test_positions_are_those_of_the_whole_row_with_a_cache(places: list[int]) -> None:
    model = writer()
    split = ModelWithSplitPoints(model, [1])
    rows = split.get_activations(["the food was great and cold", "we loved the soup here"])[1]
    dictionary = PCAConcepts(n_concepts=4).fit(rows, progress=False)
    ids = model.tokenizer("the food was", return_tensors="pt")["input_ids"]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    with steer(split, dictionary, {0: 9.0}, positions=places):
        cached, whole = (model.model.generate(ids, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached.sequences, whole.sequences)
    torch.testing.assert_close(torch.stack(cached.logits), torch.stack(whole.logits), rtol=1e-4, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in model.model.modules())


def test_a_dictionary_of_first_tokens_moves_these_alone(
    tiny_model: MakeModel, texts: list[str], batch: dict[str, torch.Tensor]
) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    dictionary = PCAConcepts(n_concepts=2).fit(split.get_activations(texts, granularity="cls")[1], progress=False)
    path = split.split_points[0]
    plain = split.capture(batch)[path]
    with steer(split, dictionary, {0: 2.0}):
        moved = split.capture(batch)[path]
    changed = ((moved - plain).abs().amax(dim=2) > 1e-6).any(dim=0)
    assert changed.tolist() == [place == 0 for place in range(plain.shape[1])]


def test_setting_the_own_code_is_the_identity(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("distilbert"), ["head"])
    rows = split.get_activations(texts * 3, granularity="sample")["head"]
    dictionary = NMFConcepts(n_concepts=4).fit(rows, progress=False)
    codes = dictionary.encode(split.get_activations(texts[:1], granularity="sample")["head"])
    own = {concept: float(code) for concept, code in enumerate(codes[0])}
    effect = intervention_effect(split, dictionary, texts[:1], own, mode="set")
    np.testing.assert_allclose(effect.after, effect.before, atol=1e-5)


def test_it_is_this_threads_and_undone(ready: Ready, batch: dict[str, torch.Tensor]) -> None:
    split, dictionary = ready
    before = logits(split.model, batch)
    found: list[torch.Tensor] = []
    with pytest.raises(ZeroDivisionError), ablate(split, dictionary, range(8)):
        thread = threading.Thread(target=lambda: found.append(logits(split.model, batch)))
        thread.start()
        thread.join()
        assert not torch.equal(logits(split.model, batch), before)
        raise ZeroDivisionError
    assert torch.equal(found[0], before)
    assert torch.equal(logits(split.model, batch), before)
    assert not any(module._forward_hooks for module in split.model.model.modules())
    with torch.inference_mode(), ablate(split, dictionary, [0]):
        split.model.model(**batch)


def test_half_precision_stays_so(ready: Ready, batch: dict[str, torch.Tensor], tiny_model: MakeModel) -> None:
    half = tiny_model("bert")
    half.model.to(torch.bfloat16)
    split = ModelWithSplitPoints(half, [1])
    with steer(split, ready[1], {0: 1.0}, allow_mismatch=True):
        assert logits(half, batch).dtype == torch.bfloat16


def test_what_cannot_be_changed_is_refused(ready: Ready, texts: list[str], tiny_model: MakeModel) -> None:
    split, dictionary = ready
    for changes, what in (({8: 1.0}, "there is no concept 8: they are 0 to 7"), ({}, "at least one concept")):
        with pytest.raises(InputError, match=what), steer(split, dictionary, changes):
            pass
    with pytest.raises(UnknownNameError, match="unknown mode 'swap'; known: 'add', 'set', 'scale'"):
        intervention_effect(split, dictionary, texts, {0: 1.0}, mode="swap")
    with pytest.raises(InputError, match="the value of concept 0 must be a number"):
        intervention_effect(split, dictionary, texts, {0: float("nan")})
    words = PCAConcepts(n_concepts=2).fit(split.get_activations(texts, granularity="word")[1], progress=False)
    with (
        pytest.raises(InputError, match="rows are 'word', which a forward pass does not know"),
        ablate(split, words, [0]),
    ):
        pass
    other = ModelWithSplitPoints(tiny_model("bert", seed=3), [1])
    with pytest.raises(IntegrityError, match="this is another one"), ablate(other, dictionary, [0]):
        pass
    with pytest.raises(InputError, match="no text with a token"):
        intervention_effect(split, dictionary, [], {0: 1.0})


def test_a_real_writer_is_steered(shared: Path) -> None:
    from interpreto_mlops.models.loading import load_model

    folder = shared / "models" / "stories260K" / "hf"
    if not folder.is_dir():
        pytest.skip(f"the trained model is not there: no folder {folder}")
    model = load_model(folder)
    split = ModelWithSplitPoints(model, [2])
    texts = ["Once upon a time there was a little dog.", "Lily went to the park with her mom. She was happy."]
    dictionary = PCAConcepts(n_concepts=8).fit(split.get_activations(texts)[2], progress=False)
    effect = intervention_effect(split, dictionary, texts, {0: 3.0}, generation={"max_new_tokens": 4})
    assert len(effect.targets) == 8
    assert np.abs(effect.effects).max() > 0.1
