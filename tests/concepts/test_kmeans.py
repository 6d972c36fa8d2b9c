"""k-means: scikit-learn's centres; codes say which or how near, and what is decoded is made of centres."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from interpreto_mlops.concepts import KMeansConcepts, evaluate, fit_together
from interpreto_mlops.concepts.scikit import random_state
from interpreto_mlops.concepts.training import as_rows
from interpreto_mlops.errors import InputError, UnknownNameError

N = 6


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Overlapping clusters far from the origin."""
    generator = torch.Generator().manual_seed(0)
    centres = 2.0 * torch.randn(N, 10, generator=generator)
    places = torch.randint(0, N, (1500,), generator=generator)
    return centres[places] + torch.randn(1500, 10, generator=generator) + 50.0


def fit(rows: torch.Tensor, **parameters: object) -> KMeansConcepts:
    return KMeansConcepts(n_concepts=N, **parameters).fit(rows, progress=False)  # type: ignore[arg-type]


def test_centres_and_assignments_are_scikit_learns(rows: torch.Tensor) -> None:
    shown = torch.cat(list(as_rows(rows).batches(4096, shuffle=True, seed=0)))
    theirs = KMeans(N, n_init=2, random_state=random_state(4)).fit(shown.double().numpy())
    ours = fit(rows, seed=4, n_init=2)
    np.testing.assert_allclose(ours.centres.numpy(), theirs.cluster_centers_, atol=1e-4)
    assert ours.encode(rows).argmax(dim=1).tolist() == theirs.predict(rows.double().numpy()).tolist()


def test_an_assignment_decodes_to_its_centre(rows: torch.Tensor) -> None:
    dictionary = fit(rows)
    codes = dictionary.encode(rows)
    assert torch.equal(codes.sort(dim=1).values, torch.eye(N)[-1:].expand(len(rows), N))
    nearest = torch.cdist(rows.double(), dictionary.centres.double()).argmin(dim=1)
    assert torch.equal(codes.argmax(dim=1), nearest)
    torch.testing.assert_close(dictionary.decode(codes), dictionary.centres[nearest], atol=1e-5, rtol=0)
    assert dictionary.softness == 0.0


def test_similarities_follow_their_formula(rows: torch.Tensor) -> None:
    dictionary = fit(rows, codes="similarity")
    codes = dictionary.encode(rows)
    distances = torch.cdist(rows.double(), dictionary.centres.double()).square()
    weights = (-distances / (2.0 * dictionary.softness)).exp()
    torch.testing.assert_close(codes.double(), weights / weights.sum(dim=1, keepdim=True), atol=1e-4, rtol=0)
    assert bool((codes >= 0.0).all())
    torch.testing.assert_close(dictionary.decode(codes), codes @ dictionary.centres, atol=1e-3, rtol=0)


def test_soft_codes_reconstruct_better_and_from_the_same_centres(rows: torch.Tensor) -> None:
    hard, soft = KMeansConcepts(n_concepts=N), KMeansConcepts(n_concepts=N, codes="similarity")
    fit_together([hard, soft], rows, progress=False)
    assert torch.equal(hard.dictionary, soft.dictionary)
    assert soft.softness > 0.0
    r2 = [evaluate(dictionary, rows)["reconstruction/r2"] for dictionary in (hard, soft)]
    assert 0.5 < r2[0] < r2[1] < 1.0


def test_clusters_far_apart_are_not_softened(rows: torch.Tensor) -> None:
    points = 100.0 * torch.eye(4, 10).repeat_interleave(20, dim=0)
    dictionary = KMeansConcepts(n_concepts=4, codes="similarity").fit(points, progress=False)
    torch.testing.assert_close(dictionary.decode(dictionary.encode(points)), points, atol=1e-3, rtol=0)


def test_more_clusters_than_different_rows_are_reported(rows: torch.Tensor) -> None:
    with pytest.warns(UserWarning, match="there are fewer different rows than 6 clusters, so some share") as found:
        fit(rows[:3].repeat(10, 1))
    assert len(found) == 1


def test_bad_parameters_are_refused(rows: torch.Tensor) -> None:
    with pytest.raises(UnknownNameError, match="unknown kind of codes 'distance'; known: 'assignment', 'similarity'"):
        KMeansConcepts(n_concepts=3, codes="distance")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="rows of the activations are equal"):
        fit(torch.ones(20, 4))
    with pytest.raises(InputError, match="max_rows must be a whole number of at least 6, not 5"):
        fit(rows, max_rows=5)
