"""A dictionary is used on the model and the layer that it was fitted on, unless told otherwise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interpreto_mlops.concepts import ActivationSet, ConceptDictionary, ModelWithSplitPoints, PCAConcepts
from interpreto_mlops.concepts.belonging import check_belongs
from interpreto_mlops.errors import IntegrityError
from interpreto_mlops.models.text_model import TextModel

ROWS = torch.randn(50, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(tiny_model: Callable[..., TextModel]) -> TextModel:
    return tiny_model("bert")


@pytest.fixture
def sets(model: TextModel, texts: list[str]) -> dict[int | str, ActivationSet]:
    return ModelWithSplitPoints(model, split_points=[1, 2]).get_activations(texts, progress=False)


@pytest.fixture
def dictionary(sets: dict[int | str, ActivationSet], tmp_path: Path) -> ConceptDictionary:
    """Loaded from disk, as it would be months later."""
    return ConceptDictionary.load(PCAConcepts(n_concepts=4).fit(sets[1], progress=False).save(tmp_path / "d"))


def test_its_own_model_and_layer_are_taken(
    dictionary: ConceptDictionary, model: TextModel, sets: dict[int | str, ActivationSet]
) -> None:
    check_belongs(dictionary, model)
    check_belongs(dictionary, ModelWithSplitPoints(model, split_points=[0]))
    check_belongs(dictionary, sets[1])
    assert torch.equal(dictionary.encode(sets[1]), dictionary.encode(sets[1].tensor()))


def test_another_model_is_refused_by_its_fingerprint(
    dictionary: ConceptDictionary, tiny_model: Callable[..., TextModel], texts: list[str]
) -> None:
    other = tiny_model("bert", seed=1)
    split = ModelWithSplitPoints(other, split_points=[1])
    activations = split.get_activations(texts, progress=False)[1]
    for used_on in (other, split, activations):
        with pytest.raises(
            IntegrityError,
            match=r"fitted on the model 'tiny' \(.*\), and this is another one, 'tiny' \(.*\); allow_mismatch=True",
        ):
            check_belongs(dictionary, used_on)
        check_belongs(dictionary, used_on, allow_mismatch=True)
    with pytest.raises(IntegrityError, match="this is another one"):
        dictionary.encode(activations)
    with pytest.raises(IntegrityError, match="this is another one"):
        next(dictionary.encode_chunks(activations))
    expected = dictionary.encode(activations.tensor())
    assert torch.equal(dictionary.encode(activations, allow_mismatch=True), expected)
    ((_, codes),) = dictionary.encode_chunks(activations, allow_mismatch=True)
    assert torch.equal(codes, expected)


def test_another_layer_of_the_same_width_is_refused(
    dictionary: ConceptDictionary, sets: dict[int | str, ActivationSet]
) -> None:
    with pytest.raises(
        IntegrityError, match=r"on the layer 'bert.encoder.layer.1', and these .* 'bert.encoder.layer.2'"
    ):
        dictionary.encode(sets[2])
    assert dictionary.encode(sets[2], allow_mismatch=True).shape == (len(sets[2]), 4)


def test_changed_weights_make_another_model(
    dictionary: ConceptDictionary, tiny_model: Callable[..., TextModel]
) -> None:
    tuned = tiny_model("bert")
    with torch.no_grad():
        next(tuned.model.parameters())[0, 0] += 1e-3
    with pytest.raises(IntegrityError, match="this is another one"):
        check_belongs(dictionary, tuned)


@pytest.mark.parametrize("provenance", [{}, {"model": None}, {"model": {"name": "tiny"}}, {"layer": "elsewhere"}])
def test_what_does_not_know_where_it_comes_from_is_taken(provenance: dict[str, Any], model: TextModel) -> None:
    dictionary = PCAConcepts(n_concepts=4).fit(ROWS, progress=False)
    dictionary.provenance = provenance
    check_belongs(dictionary, model)
    assert dictionary.encode(ROWS).shape == (50, 4)
