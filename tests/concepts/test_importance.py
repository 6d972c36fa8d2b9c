"""Importance of concepts for classes: autograd through the codes, by hand, is the reference."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from interpreto_mlops.concepts import (
    ConceptDictionary,
    ConceptImportance,
    ModelWithSplitPoints,
    PCAConcepts,
    TopKSAEConcepts,
    concept_importance,
)
from interpreto_mlops.errors import InputError, IntegrityError, ModelOutputError, UnknownNameError
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.granularity import Granularity


def groups(encoding: Encoding, granularity: str) -> list[list[int]]:
    """The tokens of each row."""
    if granularity == "cls":
        return [[0]]
    if granularity == "sample":
        return [np.flatnonzero(~encoding.special).tolist()]
    elements = encoding.elements(Granularity(granularity))
    return [np.flatnonzero(elements.of_token == row).tolist() for row in range(len(elements))]


def by_autograd(
    model: TextModel, module: torch.nn.Module, dictionary: ConceptDictionary, text: str, granularity: str
) -> tuple[int, npt.NDArray[np.float64]]:
    """One text alone: replace the layer's output by decode(z) + (a − decode(z)), and differentiate by z."""
    (encoding,) = model.encode([text])
    rows = groups(encoding, granularity)
    kept: list[torch.Tensor] = []

    def replace(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        activations = output[0].detach()
        means = torch.stack([activations[tokens].mean(dim=0) for tokens in rows])
        codes = dictionary.encode(means).requires_grad_(True)
        kept.append(codes)
        decoded = dictionary.decode(codes)
        changed = activations.clone()
        for row, tokens in enumerate(rows):
            residual = (activations[tokens] - decoded[row]).detach()
            changed[tokens] = decoded[row] + residual
        assert torch.allclose(changed, activations, atol=1e-5)
        return changed[None]

    handle = module.register_forward_hook(replace)
    try:
        ids = torch.from_numpy(encoding.ids)[None]
        logits = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    finally:
        handle.remove()
    predicted = int(logits.argmax())
    (gradient,) = torch.autograd.grad(logits[predicted], kept[0])
    return predicted, (kept[0].detach() * gradient).sum(dim=0).double().numpy()


LAYERS = {"bert": "bert.encoder.layer.1", "distilbert": "distilbert.transformer.layer.1", "gpt2": "transformer.h.1"}


@pytest.mark.parametrize(
    ("architecture", "granularity"),
    [
        *[("bert", g) for g in ("token", "word", "sentence", "cls", "sample")],
        ("distilbert", "token"),
        ("gpt2", "token"),
    ],
)
@pytest.mark.parametrize("family", ["pca", "topk_sae"])
def test_it_is_autograd_through_the_codes(
    tiny_model: Callable[..., TextModel], texts: list[str], architecture: str, granularity: str, family: str
) -> None:
    model = tiny_model(architecture)
    split = ModelWithSplitPoints(model, [1])
    activations = split.get_activations(texts, granularity=granularity, progress=False)[1]
    n_concepts = min(4, len(activations))
    dictionary: ConceptDictionary = PCAConcepts(n_concepts=n_concepts)
    if family == "topk_sae":
        dictionary = TopKSAEConcepts(n_concepts=n_concepts, k=2, n_epochs=3)
    dictionary.fit(activations, progress=False)
    found = concept_importance(split, dictionary, texts, progress=False)

    module = model.model.get_submodule(LAYERS[architecture])
    per_class: dict[int, list[npt.NDArray[np.float64]]] = {}
    for text in texts:
        predicted, values = by_autograd(model, module, dictionary, text, granularity)
        per_class.setdefault(predicted, []).append(values)
    assert found.n_texts == tuple(len(per_class.get(k, [])) for k in range(3))
    assert found.classes == model.labels
    for k in range(3):
        if k not in per_class:
            assert np.isnan(found.values[k]).all()
            continue
        expected = np.mean(per_class[k], axis=0)
        np.testing.assert_allclose(found.values[k], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        assert np.abs(expected).max() > 0


@pytest.fixture
def ready(tiny_model: Callable[..., TextModel], texts: list[str]) -> tuple[ModelWithSplitPoints, PCAConcepts]:
    split = ModelWithSplitPoints(tiny_model("bert"), [0, 1])
    dictionary = PCAConcepts(n_concepts=4)
    return split, dictionary.fit(split.get_activations(texts, progress=False)[1], progress=False)


def test_the_company_of_a_text_changes_nothing(
    ready: tuple[ModelWithSplitPoints, PCAConcepts], texts: list[str]
) -> None:
    many = [*texts, *[text[: len(text) // 2] for text in texts]] * 3
    whole = concept_importance(*ready, many, progress=False)
    single = concept_importance(*ready, iter(many[::-1]), token_budget=1, progress=False)
    assert single.n_texts == whole.n_texts
    np.testing.assert_allclose(single.values, whole.values, rtol=1e-4, atol=1e-5 * np.nanmax(np.abs(whole.values)))
    dataset = concept_importance(*ready, TextDataset("d", tuple(many)), layer=1, progress=False)
    np.testing.assert_array_equal(dataset.values, whole.values)


def test_the_model_is_untouched(ready: tuple[ModelWithSplitPoints, PCAConcepts], texts: list[str]) -> None:
    network = ready[0].model.model
    network.train()
    next(network.parameters()).grad = torch.ones_like(next(network.parameters()))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    concept_importance(*ready, texts, progress=False)
    assert network.training
    assert torch.is_grad_enabled()
    gradients = [parameter.grad for parameter in network.parameters()]
    assert gradients[0] is not None
    assert torch.equal(gradients[0], torch.ones_like(gradients[0]))
    assert gradients[1:] == [None] * (len(gradients) - 1)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_shares_frame_and_ranking() -> None:
    importance = ConceptImportance(
        ("a", "b", "c"), np.asarray([[1.0, -3.0, 0.0], [0.0, 0.0, 0.0], [np.nan] * 3]), (4, 2, 0)
    )
    np.testing.assert_allclose(importance.normalised[:2], [[0.25, -0.75, 0.0], [0.0, 0.0, 0.0]])
    assert np.isnan(importance.normalised[2]).all()
    assert importance.top(0, 2) == (1, 0)
    assert importance.top(2, 2) == ()
    frame = importance.to_frame()
    assert list(frame.columns) == ["class", "concept", "importance", "share"]
    assert frame.loc[1].tolist() == ["a", 1, -3.0, -0.75]
    assert len(frame) == 9


def test_rows_that_do_not_reach_the_logits_are_said_to(tiny_model: Callable[..., TextModel], texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [-1])
    dictionary = PCAConcepts(n_concepts=3).fit(split.get_activations(texts, progress=False)[-1], progress=False)
    with pytest.warns(UserWarning, match="do not depend on the 'token' rows"):
        found = concept_importance(split, dictionary, texts, progress=False)
    assert not np.nan_to_num(found.values).any()


def test_what_does_not_belong_together_is_refused(
    ready: tuple[ModelWithSplitPoints, PCAConcepts], tiny_model: Callable[..., TextModel], texts: list[str]
) -> None:
    split, dictionary = ready
    with pytest.raises(UnknownNameError, match="unknown split point 7"):
        concept_importance(split, dictionary, texts, layer=7, progress=False)
    with pytest.raises(IntegrityError, match=r"fitted on the model 'tiny' .* and this is another one"):
        concept_importance(ModelWithSplitPoints(tiny_model("bert", seed=1), [1]), dictionary, texts, progress=False)
    with pytest.raises(InputError, match=r"belongs to the layer 'bert\.encoder\.layer\.1'"):
        concept_importance(ModelWithSplitPoints(split.model, [0]), dictionary, texts, progress=False)
    with pytest.raises(IntegrityError, match=r"on the layer 'bert\.encoder\.layer\.1', and this is '.*0'"):
        concept_importance(ModelWithSplitPoints(split.model, [0, 1]), dictionary, texts, layer=0, progress=False)
    narrow = PCAConcepts(n_concepts=2).fit(torch.randn(9, 5), progress=False)
    with pytest.raises(InputError, match="has width 32, and the dictionary 5"):
        concept_importance(split, narrow, texts, layer=0, progress=False)


def test_a_model_that_breaks_is_named_with_its_text(
    ready: tuple[ModelWithSplitPoints, PCAConcepts], texts: list[str]
) -> None:
    split, dictionary = ready
    dictionary.provenance.pop("model")
    with torch.no_grad():
        split.model.model.classifier.bias[0] = float("nan")
    with pytest.raises(ModelOutputError, match="NaN or infinity for text"):
        concept_importance(split, dictionary, texts, progress=False)


def test_no_texts_at_all_give_no_importance(ready: tuple[ModelWithSplitPoints, PCAConcepts]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = concept_importance(*ready, [], progress=False)
    assert found.n_texts == (0, 0, 0)
    assert np.isnan(found.values).all()
