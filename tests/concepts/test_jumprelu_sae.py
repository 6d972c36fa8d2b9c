"""The JumpReLU autoencoder: jumps, pseudo-derivatives, thresholds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from interpreto_mlops.concepts import ConceptDictionary, JumpReLUSAEConcepts, VanillaSAEConcepts, fit_together
from interpreto_mlops.concepts.dictionaries.jumprelu_sae import _Count, _Jump
from interpreto_mlops.concepts.training import DataFacts, as_rows
from interpreto_mlops.errors import InputError
from tests.concepts.test_topk_sae import N_PLANTED, planted


@pytest.fixture(scope="module")
def fitted() -> JumpReLUSAEConcepts:
    return JumpReLUSAEConcepts(n_concepts=N_PLANTED, n_epochs=25).fit(planted(8000)[0], progress=False)


def test_pseudo_derivatives_are_those_of_the_paper() -> None:
    """Equations 11 and 12, place by place, with the rectangle as kernel."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(40, 6, generator=generator, dtype=torch.float64).requires_grad_()
    threshold = (torch.rand(6, generator=generator, dtype=torch.float64) + 0.1).requires_grad_()
    pull = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    bandwidth = 0.6
    values = _Jump.apply(outputs, threshold, bandwidth)
    (values * pull).sum().backward()
    of_outputs, of_threshold = torch.zeros(40, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    counted = torch.zeros(6, dtype=torch.float64)
    for row in range(40):
        for j in range(6):
            z, theta = float(outputs.detach()[row, j]), float(threshold.detach()[j])
            assert float(values.detach()[row, j]) == (z if z > theta else 0.0)
            kernel = 1.0 if abs((z - theta) / bandwidth) < 0.5 else 0.0
            of_outputs[row, j] = pull[row, j] if z > theta else 0.0
            of_threshold[j] -= theta / bandwidth * kernel * pull[row, j]
            counted[j] -= kernel / bandwidth
    assert outputs.grad is not None
    assert threshold.grad is not None
    torch.testing.assert_close(outputs.grad, of_outputs)
    torch.testing.assert_close(threshold.grad, of_threshold)

    threshold.grad = None
    count = _Count.apply(outputs.detach(), threshold, bandwidth)
    count.backward()
    assert float(count.detach()) == float((outputs > threshold).sum())
    torch.testing.assert_close(threshold.grad, counted)


def test_the_pseudo_derivative_is_the_slope_of_the_expected_loss() -> None:
    """With many rows it estimates how the number of concepts and the codes change with the threshold."""
    outputs = torch.randn(2_000_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta, step = 0.7, 0.05

    def expected(at: float) -> tuple[float, float]:
        return float((outputs > at).double().mean()), float((outputs * (outputs > at)).mean())

    slopes = [(a - b) / (2 * step) for a, b in zip(expected(theta + step), expected(theta - step), strict=True)]
    for function, slope in zip((_Count, _Jump), slopes, strict=True):
        threshold = torch.tensor([theta], dtype=torch.float64, requires_grad=True)
        (function.apply(outputs, threshold, 0.1).sum() / len(outputs)).backward()
        assert threshold.grad is not None
        assert float(threshold.grad) == pytest.approx(slope, rel=0.02)


def test_codes_are_the_outputs_above_their_thresholds(fitted: JumpReLUSAEConcepts) -> None:
    rows, weights = planted(8000)[0][:100], fitted.weights
    before = ((rows - weights["mean"]) / weights["scale"]) @ weights["encoder"].T + weights["encoder_bias"]
    codes = fitted.encode(rows)
    torch.testing.assert_close(codes, before * (before > fitted.thresholds), rtol=1e-4, atol=1e-4)
    assert bool((codes[codes > 0] > fitted.thresholds.min()).all())


def test_thresholds_are_learned_and_saved(fitted: JumpReLUSAEConcepts, tmp_path: Path) -> None:
    assert fitted.thresholds.shape == (N_PLANTED,)
    assert bool((fitted.thresholds > 0).all())
    assert len(fitted.thresholds.unique()) > N_PLANTED // 2
    loaded = ConceptDictionary.load(fitted.save(tmp_path))
    assert torch.equal(loaded.weights["thresholds"], fitted.thresholds)


def test_planted_directions_are_found(fitted: JumpReLUSAEConcepts) -> None:
    cosines = (fitted.dictionary @ planted(8000)[1].T).numpy()
    assert cosines[linear_sum_assignment(-cosines)].mean() > 0.95


def test_it_explains_more_than_an_l1_penalty_with_no_more_concepts(fitted: JumpReLUSAEConcepts) -> None:
    rows, _ = planted(8000)
    vanilla = VanillaSAEConcepts(n_concepts=N_PLANTED, n_epochs=25).fit(rows, progress=False)
    codes = [each.encode(rows) for each in (fitted, vanilla)]
    l0 = [float((each > 0).sum(dim=1).double().mean()) for each in codes]
    errors = [float((rows - d.decode(z)).square().sum()) for d, z in zip((fitted, vanilla), codes, strict=True)]
    assert l0[0] < l0[1]
    assert errors[0] < errors[1]


def test_a_heavier_penalty_gives_fewer_concepts() -> None:
    rows, _ = planted(4000)
    weights = (0.0005, 0.004, 0.02)
    made = [JumpReLUSAEConcepts(n_concepts=N_PLANTED, sparsity_coefficient=w, n_epochs=15) for w in weights]
    l0 = [float((d.encode(rows) > 0).sum(dim=1).double().mean()) for d in fit_together(made, rows, progress=False)]
    assert l0[0] > l0[1] > l0[2]


def test_dead_concepts_are_lifted_towards_their_thresholds() -> None:
    rows, _ = planted(64)
    dictionary = JumpReLUSAEConcepts(n_concepts=20)
    learner = dictionary.begin(DataFacts(len(rows), as_rows(rows).mean, as_rows(rows).variance))
    architecture, batch = learner.architecture, learner._normalised(rows)
    codes = architecture.codes(batch)
    loss = architecture.revival(batch, codes, batch, torch.tensor([2, 5]), 1.0)
    assert loss is not None
    loss.backward()
    gradient = architecture.learned["encoder_bias"].grad
    assert gradient is not None
    assert gradient.nonzero().flatten().tolist() == [2, 5]
    assert bool((gradient[[2, 5]] < 0).all())


@pytest.mark.parametrize("parameter", ["initial_threshold", "bandwidth", "threshold_pace"])
def test_bad_parameters_are_refused(parameter: str) -> None:
    with pytest.raises(InputError, match=f"{parameter} must be a number from 1e-09 to below inf, not 0"):
        JumpReLUSAEConcepts(**{"n_concepts": 8, parameter: 0})
