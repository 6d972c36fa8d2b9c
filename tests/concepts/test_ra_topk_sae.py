"""The archetypal autoencoder: concepts stay near the hull of points of the data, and pure concepts are found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, nnls

from interpreto_mlops.concepts import RATopKSAEConcepts, TopKSAEConcepts, evaluate, fit_together, stability
from interpreto_mlops.concepts.archetypes import Candidates, find_candidates, spread
from interpreto_mlops.concepts.rows import DataFacts, as_rows
from interpreto_mlops.errors import InputError

WIDTH, N_PLANTED = 32, 24


def planted(n_rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of one direction or two, in any amounts from 0.5 to 1.5, around an origin; with directions and origin."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(N_PLANTED, WIDTH, generator=generator), dim=1)
    places = torch.rand(n_rows, N_PLANTED, generator=generator).topk(2, dim=1).indices
    amounts = torch.rand(n_rows, 2, generator=generator) + 0.5
    amounts[:, 1] *= torch.rand(n_rows, generator=generator) < 0.5
    origin = 4.0 * torch.randn(WIDTH, generator=generator)
    codes = torch.zeros(n_rows, N_PLANTED).scatter_(1, places, amounts)
    return codes @ directions + origin + 0.02 * torch.randn(n_rows, WIDTH, generator=generator), directions, origin


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return planted(6000)


SMALL: dict[str, Any] = {"n_concepts": N_PLANTED, "k": 2, "n_epochs": 15}


@pytest.fixture(scope="module")
def pair(data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> list[RATopKSAEConcepts]:
    return fit_together([RATopKSAEConcepts(**SMALL, seed=seed) for seed in range(2)], data[0], progress=False)


def to_hull(archetypes: torch.Tensor, points: torch.Tensor) -> np.ndarray:
    """Return the distance of each archetype from the convex hull of the points, shape (archetypes,)."""
    centre = points.double().mean(dim=0)
    corners, wanted = (points.double() - centre).numpy(), (archetypes.double() - centre).numpy()
    heavy = 1e4 * np.abs(corners).max()  # holds the sum of the weights to 1
    system = np.vstack([corners.T, np.full(len(corners), heavy)])
    found = [nnls(system, np.append(row, heavy))[0] for row in wanted]
    return np.asarray([np.linalg.norm(w / w.sum() @ corners - row) for w, row in zip(found, wanted, strict=True)])


@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
def test_archetypes_are_within_delta_of_the_hull(
    delta: float, data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> None:
    dictionary = RATopKSAEConcepts(**SMALL, delta=delta, multiplier=False).fit(data[0], progress=False)
    length = float(dictionary.tensor("scale"))  # of a row at √width is √width of these
    distances = to_hull(dictionary.archetypes, dictionary.points)
    assert distances.max() <= delta * length * 1.001 + 1e-3
    if delta:
        assert distances.max() > 0.05 * length  # the relaxation is made use of
    expected = dictionary.tensor("centre") + dictionary.tensor("archetype_length") * dictionary.dictionary
    torch.testing.assert_close(dictionary.archetypes, expected)
    assert float(dictionary.dictionary.norm(dim=1).max()) < 3.0


def test_with_a_multiplier_it_is_the_archetypes_that_are_near_the_hull(pair: list[RATopKSAEConcepts]) -> None:
    assert to_hull(pair[0].archetypes, pair[0].points).max() <= float(pair[0].tensor("scale")) * 1.001 + 1e-3
    longer = pair[0].dictionary * float(pair[0].tensor("scale")) * 20 + pair[0].tensor("centre")
    assert to_hull(longer, pair[0].points).max() > 2.0


def test_planted_directions_are_found(
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor], pair: list[RATopKSAEConcepts]
) -> None:
    rows, directions, _ = data
    for dictionary in pair:
        # A free TopK decoder reaches 0.89 to 1.00 on such data, by its seed.
        cosines = (torch.nn.functional.normalize(dictionary.dictionary, dim=1) @ directions.T).numpy()
        assert cosines[linear_sum_assignment(-cosines)].mean() > 0.93
        assert evaluate(dictionary, rows)["reconstruction/r2"] > 0.95
    assert stability(pair) > 0.9


def test_too_few_concepts_are_found_more_alike_than_by_free_decoders(
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    parameters = {**SMALL, "n_concepts": 12}
    families = (RATopKSAEConcepts, TopKSAEConcepts)
    fitted = fit_together(
        [family(**parameters, seed=s) for family in families for s in range(2)], data[0], progress=False
    )
    assert stability(fitted[:2]) > stability(fitted[2:])


def test_encoding_is_what_the_formula_says(
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor], pair: list[RATopKSAEConcepts]
) -> None:
    weights, rows = pair[0].weights, data[0][:100]
    before = ((rows - weights["mean"]) / weights["scale"]) @ weights["encoder"].T + weights["encoder_bias"]
    expected = torch.zeros_like(before)
    for row, values in enumerate(before):
        for place in values.argsort(descending=True)[:2]:
            expected[row, place] = values[place].clamp(min=0.0)
    torch.testing.assert_close(pair[0].encode(rows), expected, rtol=1e-4, atol=1e-4)


def test_the_training_curve_says_what_the_dictionary_is_worth(
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor], pair: list[RATopKSAEConcepts]
) -> None:
    found = evaluate(pair[0], data[0])["reconstruction/r2"]
    assert pair[0].history_[-1]["train/r2"] == pytest.approx(found, abs=0.02)


def test_fewer_points_than_concepts_leave_no_concept_empty(
    data: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    dictionary = RATopKSAEConcepts(**SMALL, n_points=7, multiplier=False).fit(data[0], progress=False)
    assert dictionary.points.shape == (7, WIDTH)
    assert float(dictionary.dictionary.norm(dim=1).min()) > 0.05
    assert len({tuple(row) for row in dictionary.dictionary.tolist()}) == N_PLANTED
    assert to_hull(dictionary.archetypes, dictionary.points).max() <= float(dictionary.tensor("scale")) * 1.001 + 1e-3


def test_a_mixture_that_runs_dry_starts_anew() -> None:
    points = torch.nn.functional.normalize(torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    architecture = RATopKSAEConcepts(n_concepts=4, k=1, delta=0.0).with_points(Candidates(points, 1.0))
    mixture = architecture.learned["mixture"]
    with torch.no_grad():
        mixture[2] = torch.tensor([-0.3, -0.2, -0.1, -0.5, -0.4, -0.6])
    architecture.settle()
    torch.testing.assert_close(architecture.decoder()[2], points[2])
    torch.testing.assert_close(mixture.sum(dim=1), torch.ones(4))


def test_as_many_points_as_rows_are_the_rows() -> None:
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    found = find_candidates(rows, 1000, seed=0)
    points = found.points * found.length
    assert torch.cdist(points, rows).argmin(dim=1).unique().tolist() == list(range(20))
    torch.testing.assert_close(points.sort(dim=0).values, rows.sort(dim=0).values)
    assert float(found.points.square().sum(dim=1).mean()) == pytest.approx(1.0)


def test_points_are_spread_by_direction() -> None:
    points = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [2.0, 0.0], [-1.0, 0.1]])
    assert spread(points, 3).tolist() == [3, 4, 2]
    assert sorted(spread(points, 9).tolist()) == [0, 1, 2, 3, 4]


def test_what_is_gathered_goes_along(data: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    rows = data[0][:1000]
    facts = DataFacts(1000, as_rows(rows).mean, as_rows(rows).variance)
    dictionary = RATopKSAEConcepts(**{**SMALL, "n_epochs": 1}, n_points=50)
    whole, stopped, resumed = (dictionary.begin(facts) for _ in range(3))
    blocks = rows.split(200)
    for block in blocks:
        whole.observe(block)
    stopped.observe(blocks[0])
    assert stopped.state().keys() == {"gathered"}
    resumed.restore(stopped.state())
    for block in blocks[1:]:
        resumed.observe(block)
    for learner in (whole, resumed):
        learner.end_pass()
    expected, found = whole.finish(), resumed.finish()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"delta": -0.1}, "delta must be a number from 0.0"),
        ({"n_points": 0}, "n_points must be a whole number of at least 1, not 0"),
        ({"k": 99}, r"k must be at most n_concepts \(24\), not 99"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RATopKSAEConcepts(**{**SMALL, **parameters})
