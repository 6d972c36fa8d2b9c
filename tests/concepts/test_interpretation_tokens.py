"""The tokens of a concept: where its direction points, and what turning it up and down does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interpreto_mlops.concepts import (
    ConceptDictionary,
    ModelWithSplitPoints,
    NeuronsAsConcepts,
    PCAConcepts,
    TokenChange,
    TopKSAEConcepts,
    VocabProj,
    steer,
)
from interpreto_mlops.concepts.interpretation.base import best
from interpreto_mlops.concepts.linear import linear_state
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer
from tests.models.architectures import random_model

WIDTH = 32
PLANTED = {0: "soup", 1: "waiter", 2: "loved"}


def writer(name: str = "gpt2", seed: int = 0, head: str = "causal") -> TextModel:
    return TextModel(random_model(name, head, seed=seed), word_tokenizer(bos=head == "masked"), name=name)


def directions(rows: torch.Tensor, *, signed: bool = True, scale: float = 1.0) -> ConceptDictionary:
    """A dictionary of these directions, orthonormal ones, whose codes are projections."""
    n, width = rows.shape
    kind = PCAConcepts(n_concepts=n) if signed else TopKSAEConcepts(n_concepts=n, k=n)
    kind.weights = linear_state(torch.zeros(width), scale, rows, torch.zeros(n), rows)
    return kind


def orthonormal(n: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(WIDTH, n, generator=torch.Generator().manual_seed(seed))
    # Without a mean, so that a layer norm leaves a direction as it is.
    return torch.linalg.qr(drawn - drawn.mean(0)).Q.T.contiguous()


def planted(name: str) -> tuple[TextModel, ConceptDictionary]:
    """A writer whose blocks hardly change the stream, and whose head reads three directions as three words."""
    model = writer(name)
    rows = orthonormal(8)
    vocabulary = model.tokenizer.get_vocab()
    network: Any = model.model
    with torch.no_grad():
        for parameter in network.base_model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.05)
        head = network.get_output_embeddings().weight
        head.copy_(0.02 * torch.randn(head.shape, generator=torch.Generator().manual_seed(1)))
        for concept, word in PLANTED.items():
            head[vocabulary[word]] = rows[concept]
    return model, directions(rows)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_planted_direction_is_found_by_both(name: str) -> None:
    model, dictionary = planted(name)
    split = ModelWithSplitPoints(model, [1])
    projected = VocabProj(k=5)(dictionary, split=split)
    changed = TokenChange(k=3, n_sequences=6, length=8)(dictionary, split=split)
    for concept, word in PLANTED.items():
        assert projected[concept].top[0].token == word
        assert projected[concept].top[0].score > 3 * projected[concept].top[1].score
        effects = changed[concept]
        assert effects.raised[0].token == effects.lowered_down[0].token == word
        assert effects.raised[0].score > 3 * effects.raised[1].score > 0
        assert effects.lowered_down[0].score < 3 * effects.lowered_down[1].score < 0
    for concept in range(3, 8):
        assert projected[concept].top[0].score < projected[0].top[0].score / 3


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gemma2", "cohere", "opt", "mistral"])
def test_a_projection_is_the_norm_and_the_head_of_the_direction(name: str) -> None:
    model = writer(name)
    network: Any = model.model
    dictionary = directions(3.0 * orthonormal(4))
    found = VocabProj(k=64)(dictionary, split=ModelWithSplitPoints(model, [1]))
    norms = {"gpt2": "transformer.ln_f", "opt": "model.decoder.final_layer_norm"}
    norm = network.get_submodule(norms.get(name, "model.norm"))
    with torch.no_grad():
        logits = network.get_output_embeddings()(norm(dictionary.dictionary))
        if name == "gemma2":
            cap = network.config.final_logit_softcapping
            logits = cap * torch.tanh(logits / cap)
        if name == "cohere":
            logits = logits * network.config.logit_scale
    n_named = len(model.tokenizer)
    for concept, each in enumerate(found):
        assert len(each.top) == len(each.bottom) == n_named
        order = torch.argsort(-logits[concept, :n_named]).tolist()
        assert [entry.token_id for entry in each.top] == order
        assert [entry.token_id for entry in each.bottom] == order[::-1]
        np.testing.assert_allclose([e.score for e in each.top], logits[concept][order], rtol=1e-4, atol=1e-4)
        assert all(model.tokenizer.decode([e.token_id]) == e.token for e in each.top)


def test_where_the_layer_comes_after_the_last_block_nothing_is_normed_twice() -> None:
    model = writer("gpt2")
    network: Any = model.model
    dictionary = directions(2.0 * orthonormal(3))
    head = network.lm_head.weight.detach()
    for place in ("head", "transformer.ln_f"):
        (first, *_) = VocabProj(k=1)(dictionary, split=ModelWithSplitPoints(model, [place]))
        scores = (head @ dictionary.dictionary[0])[: len(model.tokenizer)]
        assert first.top[0].token_id == int(scores.argmax())
        assert first.top[0].score == pytest.approx(float(scores.max()), rel=1e-4)


def test_a_masked_language_model_has_an_unembedding_too() -> None:
    model = writer("bert", head="masked")
    dictionary = directions(orthonormal(3))
    network: Any = model.model
    (first, *_) = VocabProj(k=2)(dictionary, split=ModelWithSplitPoints(model, [0]))
    with torch.no_grad():
        logits = network.cls(dictionary.dictionary)[0, : len(model.tokenizer)]
    assert first.top[0].token_id == int(logits.argmax())
    with pytest.raises(InputError, match="is not a decoder that writes"):
        TokenChange()(dictionary, split=ModelWithSplitPoints(model, [0]))


def test_a_classifier_s_directions_add_to_its_logits(tiny_model: Callable[..., TextModel], texts: list[str]) -> None:
    model = tiny_model("bert")
    network: Any = model.model
    split = ModelWithSplitPoints(model, ["head", 1])
    dictionary = directions(orthonormal(5), scale=2.5)
    found = VocabProj()(dictionary, split=split, layer="head")
    expected = 2.5 * dictionary.dictionary @ network.classifier.weight.detach().T
    for concept, each in enumerate(found):
        assert each.of == "classes"
        assert {e.token: pytest.approx(e.score, rel=1e-4) for e in each.top} == {
            label: float(expected[concept, i]) for i, label in enumerate(model.labels)
        }
        assert [e.score for e in each.top] == sorted((e.score for e in each.top), reverse=True)
        assert each.bottom == each.top[::-1]
    # One unit more of the code is that much more of the logits: by the model itself.
    batch = model.inputs(list(model.encode(texts)))
    with torch.no_grad():
        before = split.outputs(batch, {}).logits
        after = split.outputs(batch, {"head": lambda rows: rows + 2.5 * dictionary.dictionary[0]}).logits
    np.testing.assert_allclose((after - before).numpy(), np.tile(expected[0].numpy(), (5, 1)), atol=1e-4)
    with pytest.raises(InputError, match="is not what the linear head 'classifier' of 'tiny' reads"):
        VocabProj()(dictionary, split=split, layer=1)
    pooled = ModelWithSplitPoints(model, ["bert.pooler"])
    assert VocabProj()(dictionary, split=pooled) == found


@pytest.mark.parametrize("mode", ["set", "add"])
@pytest.mark.parametrize(("name", "signed"), [("gpt2", True), ("llama", False)])
def test_effects_are_those_of_steering_one_by_one(name: str, signed: bool, mode: str) -> None:
    model = writer(name)
    split = ModelWithSplitPoints(model, [1])
    dictionary = directions(orthonormal(3), signed=signed, scale=1.5)
    texts = ("the food was good", "awful soup , never again !", "we")
    for budget in (1, 40, 4096):
        method = TokenChange(value=4.0, mode=mode, k=64, sequences=texts, length=5, token_budget=budget)
        found = method(dictionary, split=split)
        for concept, each in enumerate(found):
            for value, raised, lowered in (
                (4.0, each.raised, each.lowered),
                (-4.0, each.raised_down, each.lowered_down),
            ):
                clean, steered = [], []
                for text in texts:
                    ids = torch.tensor([model.tokenizer(text)["input_ids"][:5]])
                    with torch.no_grad():
                        clean.append(model.model(input_ids=ids).logits[0])
                        with steer(split, dictionary, {concept: value}, mode=mode):
                            steered.append(model.model(input_ids=ids).logits[0])
                effect = (torch.cat(steered) - torch.cat(clean)).mean(0)[: len(model.tokenizer)]
                scores = {entry.token_id: entry.score for entry in raised}
                assert len(scores) == len(effect)
                order = [entry.score for entry in raised]
                assert order == sorted(order, reverse=True)
                assert lowered[0].score == pytest.approx(float(effect.min()), abs=1e-4)
                for token, score in scores.items():
                    assert score == pytest.approx(float(effect[token]), abs=1e-4)


def test_effects_are_repeated_by_the_seed_and_concepts_are_chosen() -> None:
    model, dictionary = planted("gpt2")
    split = ModelWithSplitPoints(model, [1])
    method = TokenChange(k=2, n_sequences=3, length=6)
    found = method(dictionary, split=split)
    assert method(dictionary, split=split) == found
    chosen = method(dictionary, split=split, concepts=[2, 0])
    assert [(each.concept, each.raised[0].token) for each in chosen] == [(2, PLANTED[2]), (0, PLANTED[0])]
    assert TokenChange(k=2, n_sequences=3, length=6, seed=1)(dictionary, split=split) != found


def test_rows_of_more_than_a_token_are_added_to(texts: list[str]) -> None:
    model, _ = planted("gpt2")
    split = ModelWithSplitPoints(model, [1])
    for granularity in ("token", "all_tokens", "word", "sentence", "sample", "cls"):
        activations = split.get_activations(texts, granularity=granularity, progress=False)[1]
        dictionary = PCAConcepts(n_concepts=2).fit(activations, progress=False)
        several = granularity in {"word", "sentence", "sample"}
        method = TokenChange(k=2, n_sequences=2, length=4, mode="add" if several else "set")
        found = method(dictionary, split=split)
        assert [len(each.raised) for each in found] == [2, 2]
        assert VocabProj(k=3)(dictionary, split=split)[0].top
        if several:
            with pytest.raises(InputError, match="take mode='add'"):
                TokenChange(n_sequences=2)(dictionary, split=split)


def test_a_dead_direction_points_nowhere() -> None:
    rows = orthonormal(3)
    rows[1] = 0.0
    found = VocabProj(k=2)(directions(rows), split=ModelWithSplitPoints(writer(), [1]))
    assert [len(each.top) for each in found] == [2, 0, 2]
    assert found[1].to_dict() == {"concept": 1, "top": (), "bottom": (), "of": "tokens"}


def test_the_model_stays_as_it_is() -> None:
    model, dictionary = planted("gpt2")
    before = model.fingerprint
    model.model.train()
    split = ModelWithSplitPoints(model, [1])
    VocabProj(k=2)(dictionary, split=split)
    TokenChange(k=2, n_sequences=2, length=4)(dictionary, split=split)
    assert model.model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
    assert TextModel(model.model, model.tokenizer).fingerprint == before


def test_models_and_parameters_that_cannot_be_used(tiny_model: Callable[..., TextModel]) -> None:
    dictionary = directions(orthonormal(2))
    classifier = ModelWithSplitPoints(tiny_model("gpt2"), [1])
    with pytest.raises(InputError, match="is not a decoder that writes"):
        TokenChange()(dictionary, split=classifier)
    with pytest.raises(InputError, match="has no unembedding"):
        VocabProj()(dictionary, split=ModelWithSplitPoints(writer("t5", head="seq2seq"), [0]))
    narrow = ModelWithSplitPoints(writer("llama"), ["1.mlp", "model.layers.1.mlp.down_proj.input"])
    neurons = NeuronsAsConcepts(n_concepts=48)
    neurons.fit(torch.randn(60, 48), progress=False)
    with pytest.raises(InputError, match="have width 48, and the last block"):
        VocabProj()(neurons, split=narrow, layer="model.layers.1.mlp.down_proj.input")
    with pytest.raises(InputError, match="needs split="):
        VocabProj()(dictionary)
    with pytest.raises(UnknownNameError, match="unknown mode 'scale'"):
        TokenChange(mode="scale")
    with pytest.raises(InputError, match="value must be above 0"):
        TokenChange(value=0.0)
    with pytest.raises(InputError, match="no sequence with a token"):
        TokenChange(sequences=("",))(dictionary, split=ModelWithSplitPoints(writer(), [1]))


def test_a_real_writer_has_tokens(shared: Path) -> None:
    from interpreto_mlops.models.loading import load_model

    folder = shared / "models" / "stories260K" / "hf"
    if not folder.is_dir():
        pytest.skip(f"the trained model is not there: no folder {folder}")
    model = load_model(folder)
    split = ModelWithSplitPoints(model, [3])
    network: Any = model.model
    # The direction that the head reads as a token: both must find that token.
    wanted = [token for token, _ in sorted(model.tokenizer.get_vocab().items(), key=lambda item: item[1])][-60:-40]
    ids = model.tokenizer.convert_tokens_to_ids(wanted)
    norm = network.model.norm.weight.detach()
    rows = network.lm_head.weight.detach()[ids] * norm
    dictionary = directions(rows / rows.norm(dim=1, keepdim=True))
    projected = VocabProj(k=5)(dictionary, split=split)
    found = [token in {entry.token_id for entry in each.top} for token, each in zip(ids, projected, strict=True)]
    assert np.mean(found) >= 0.9
    changed = TokenChange(mode="add", n_sequences=8, length=16)(dictionary, split=split)
    raised = [token in {entry.token_id for entry in each.raised} for token, each in zip(ids, changed, strict=True)]
    assert np.mean(raised) >= 0.8


def test_both_engines_give_the_same_effects() -> None:
    model, dictionary = planted("llama")
    method = TokenChange(k=4, n_sequences=2, length=6)
    hooks, traced = (
        method(dictionary, split=ModelWithSplitPoints(model, [1], engine=engine), concepts=[0, 5])
        for engine in ("hooks", "nnsight")
    )
    for one, other in zip(hooks, traced, strict=True):
        assert [entry.token_id for entry in one.raised] == [entry.token_id for entry in other.raised]
        np.testing.assert_allclose([e.score for e in one.raised], [e.score for e in other.raised], rtol=1e-5)


def test_a_concept_of_the_first_token_is_changed_there_alone(texts: list[str]) -> None:
    model = writer("llama")
    split = ModelWithSplitPoints(model, [1])
    activations = split.get_activations(texts, granularity="cls", progress=False)[1]
    dictionary = PCAConcepts(n_concepts=2).fit(activations, progress=False)
    text = "the food was good"
    (found, _) = TokenChange(value=3.0, k=64, sequences=(text,))(dictionary, split=split)
    ids = torch.tensor([model.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        clean = model.model(input_ids=ids).logits[0]
        with steer(split, dictionary, {0: 3.0}, mode="set", positions=[0]):
            effect = (model.model(input_ids=ids).logits[0] - clean).mean(0)
    for entry in found.raised:
        assert entry.score == pytest.approx(float(effect[entry.token_id]), abs=1e-4)


def test_the_best_are_those_of_a_sort() -> None:
    rng = np.random.default_rng(0)
    for k in (1, 3, 10, 50):
        scores, ids = rng.integers(0, 6, 40).astype(float), rng.permutation(40)
        wanted = sorted(zip(ids.tolist(), scores.tolist(), strict=True), key=lambda entry: (-entry[1], entry[0]))[:k]
        assert best(scores, ids, k) == wanted
