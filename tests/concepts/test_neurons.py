"""Neurons: the activations themselves, to the bit."""

from __future__ import annotations

import pytest
import torch

from interpreto_mlops.concepts import ConceptDictionary, NeuronsAsConcepts, evaluate
from interpreto_mlops.errors import InputError

ROWS = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 1e-20, 1e20, 1, 1]) + 3.0


def test_codes_and_reconstructions_are_the_activations() -> None:
    neurons = NeuronsAsConcepts().fit(ROWS, progress=False)
    assert torch.equal(neurons.encode(ROWS), ROWS)
    assert torch.equal(neurons.decode(ROWS), ROWS)
    assert torch.equal(neurons.dictionary, torch.eye(6))
    assert evaluate(neurons, ROWS)["reconstruction/r2"] == 1.0


def test_the_number_of_concepts_is_the_width(tmp_path) -> None:  # type: ignore[no-untyped-def]
    neurons = NeuronsAsConcepts()
    assert neurons.n_concepts is None
    neurons.fit(ROWS, progress=False)
    assert neurons.n_concepts == neurons.width == 6
    assert ConceptDictionary.load(neurons.save(tmp_path)).n_concepts == 6
    assert NeuronsAsConcepts(n_concepts=6).fit(ROWS, progress=False).n_concepts == 6
    with pytest.raises(InputError, match="activations of width 6 have 6 neurons, not 5; leave n_concepts out"):
        NeuronsAsConcepts(n_concepts=5).fit(ROWS, progress=False)


def test_one_row_is_enough_for_nothing_is_learned() -> None:
    assert torch.equal(NeuronsAsConcepts().fit(ROWS[:1], progress=False).encode(ROWS), ROWS)
