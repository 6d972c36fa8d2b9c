"""The L1 autoencoder: its loss, and what the weight of the penalty does."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from interpreto_mlops.concepts import VanillaSAEConcepts, fit_together
from interpreto_mlops.concepts.sae_learner import AutoencoderLearner
from interpreto_mlops.concepts.training import DataFacts, as_rows
from interpreto_mlops.errors import InputError
from tests.concepts.test_topk_sae import N_PLANTED, WIDTH, planted


def begun(rows: torch.Tensor, **parameters: float) -> AutoencoderLearner:
    dictionary = VanillaSAEConcepts(**{"n_concepts": 20, **parameters})  # type: ignore[arg-type]
    return dictionary.begin(DataFacts(len(rows), as_rows(rows).mean, as_rows(rows).variance))


def test_the_gradients_are_those_of_the_papers_loss() -> None:
    """Rows scaled to a mean squared norm of 1: |x − f D − b|² + λ Σ f |D|, by autograd of the formula as it stands."""
    rows, _ = planted(64)
    learner = begun(rows, sparsity_coefficient=0.3, sparsity_warmup=0.0, batch_size=64)
    batch = learner._normalised(rows)
    learner._gather(batch, torch.empty(0, dtype=torch.int64))
    tensors = {name: each.detach().clone().requires_grad_() for name, each in learner.architecture.learned.items()}
    codes = ((batch - tensors["bias"]) @ tensors["encoder"].T + tensors["encoder_bias"]).relu()
    error = batch - codes @ tensors["decoder"] - tensors["bias"]
    # The norms are 1, and stay so: their gradient is radial and projected away.
    norms = tensors["decoder"].norm(dim=1).detach()
    per_row = (error / WIDTH**0.5).square().sum(dim=1) + 0.3 * (codes / WIDTH**0.5 * norms).sum(dim=1)
    per_row.mean().backward()
    for name, tensor in tensors.items():
        torch.testing.assert_close(learner.architecture.learned[name].grad, tensor.grad, msg=name)


def test_a_heavier_penalty_gives_fewer_concepts_and_less_explained() -> None:
    rows, _ = planted(4000)
    weights = (0.02, 0.1, 0.5)
    fitted = fit_together(
        [VanillaSAEConcepts(n_concepts=N_PLANTED, sparsity_coefficient=w, n_epochs=15) for w in weights],
        rows,
        progress=False,
    )
    l0 = [float((each.encode(rows) > 0).sum(dim=1).double().mean()) for each in fitted]
    errors = [float((rows - each.decode(each.encode(rows))).square().sum()) for each in fitted]
    assert l0[0] > l0[1] > l0[2]
    assert errors[0] < errors[1] < errors[2]


def test_planted_directions_are_found() -> None:
    rows, directions = planted(8000)
    fitted = VanillaSAEConcepts(n_concepts=N_PLANTED, n_epochs=25).fit(rows, progress=False)
    cosines = (fitted.dictionary @ directions.T).numpy()
    assert cosines[linear_sum_assignment(-cosines)].mean() > 0.95


def test_the_penalty_warms_up() -> None:
    rows, _ = planted(64)
    learner = begun(rows, sparsity_coefficient=2.0, sparsity_warmup=0.5)
    codes = learner.architecture.codes(learner._normalised(rows))
    losses = [learner.architecture.sparsity(codes, done) for done in (0.0, 0.25, 0.5, 1.0)]
    found = [float(loss.detach()) for loss in losses if loss is not None]
    assert found == pytest.approx([0.0, found[3] / 2, found[3], found[3]])
    assert found[3] > 0


def test_dead_concepts_come_back() -> None:
    rows, _ = planted(3000)

    def dead(aux_coefficient: float) -> float:
        learner = begun(rows, aux_coefficient=aux_coefficient, n_epochs=20, dead_after=1000)
        with torch.no_grad():
            learner.architecture.learned["encoder_bias"][5:] = -20.0
        for number in range(20):
            for block in as_rows(rows).batches(500, shuffle=True, seed=number):
                learner.observe(block)
            learner.end_pass()
        return learner.news()[-1]["train/dead"]

    assert dead(0.0) > 0.5
    assert dead(1e-4) < 0.1


@pytest.mark.parametrize("parameter", ["sparsity_coefficient", "sparsity_warmup", "aux_coefficient"])
def test_bad_parameters_are_refused(parameter: str) -> None:
    with pytest.raises(InputError, match=f"{parameter} must be a number from 0.0 to below .*, not -1"):
        VanillaSAEConcepts(**{"n_concepts": 8, parameter: -1})
