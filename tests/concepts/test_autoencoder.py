"""The loop that all autoencoders share: batches, accumulation, stopping, bad numbers, the training curve."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
import torch

from interpreto_mlops.concepts import DICTIONARIES, RATopKSAEConcepts, TopKSAEConcepts
from interpreto_mlops.concepts.archetypes import find_candidates
from interpreto_mlops.concepts.autoencoder import SparseAutoencoder
from interpreto_mlops.concepts.overcomplete_import import overcomplete_module
from interpreto_mlops.concepts.sae_learner import AutoencoderLearner, _held_out
from interpreto_mlops.concepts.training import DataFacts, Rows, as_rows
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.text_model import TextModel

WIDTH, N_CONCEPTS = 16, 40
FAMILIES = [name for name, family in DICTIONARIES.items() if issubclass(family, SparseAutoencoder)]
every_autoencoder = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Sparse mixtures of directions, away from the origin."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, WIDTH, generator=generator)
    sparse = torch.rand(1500, 24, generator=generator) * (torch.rand(1500, 24, generator=generator) < 0.15)
    return sparse @ directions + 0.02 * torch.randn(1500, WIDTH, generator=generator) - 2.0


@pytest.fixture(scope="module")
def cebab_activations(cebab_model: TextModel, cebab_reviews: pd.DataFrame) -> torch.Tensor:
    """Rows of the last block's tokens, without specials, in an order by chance."""
    model, found = cebab_model.model, []
    texts = cebab_reviews["text"].tolist()
    for start in range(0, len(texts), 64):
        batch = cebab_model.tokenizer(
            texts[start : start + 64],
            padding=True,
            truncation=True,
            max_length=64,
            return_tensors="pt",
            return_special_tokens_mask=True,
        )
        ordinary = batch.pop("special_tokens_mask") == 0
        with torch.no_grad():
            found.append(model.base_model(**batch).last_hidden_state[ordinary])
    rows = torch.cat(found)
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def build(name: str, **parameters: Any) -> SparseAutoencoder:
    few = {"k": 4} if "k" in DICTIONARIES.get(name).__dataclass_fields__ else {}
    made = DICTIONARIES.get(name)(**{"n_concepts": N_CONCEPTS, "n_epochs": 6, "batch_size": 64, **few, **parameters})
    assert isinstance(made, SparseAutoencoder)
    return made


def facts(rows: Rows) -> DataFacts:
    return DataFacts(len(rows), rows.mean, rows.variance)


def begun(name: str, rows: torch.Tensor, **parameters: Any) -> AutoencoderLearner:
    made, known = build(name, **parameters), facts(as_rows(rows))
    if isinstance(made, RATopKSAEConcepts):  # which would first gather rows to find its points
        normalised = (rows - torch.from_numpy(known.mean).float()) / known.scale
        candidates = find_candidates(normalised, 2 * N_CONCEPTS, seed=0)
        return AutoencoderLearner(made, made.with_points(candidates), known)
    learner = made.begin(known)
    assert isinstance(learner, AutoencoderLearner)
    return learner


def show(learner: AutoencoderLearner, rows: torch.Tensor, passes: int) -> None:
    for number in range(passes):
        if learner.stopped:
            return
        for block in as_rows(rows).batches(400, shuffle=True, seed=number):
            learner.observe(block)
        learner.end_pass()


# Each batch of a BatchTopK chooses its own codes, as its docstring says.
@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "batchtopk_sae"])
def test_accumulated_batches_are_the_large_batch(name: str, rows: torch.Tensor) -> None:
    found = []
    for split in (1, 4):
        learner = begun(name, rows, batch_size=128 // split, accumulate=split, clip_norm=1e9, dead_after=100)
        learner._silence[:5] = 1000  # so that the loss for dead concepts takes part
        batch = learner._normalised(rows[:128])
        dead = learner._dead().nonzero().flatten()
        for part in batch.split(128 // split):
            learner._gather(part, dead)
        found.append({key: tensor.grad for key, tensor in learner.architecture.learned.items()})
    for key, gradient in found[0].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-4, atol=1e-7, msg=key)
    shown = [begun(name, rows, batch_size=96 // split, accumulate=split) for split in (1, 3)]
    for learner in shown:
        show(learner, rows, 1)
    assert shown[0]._n_steps == shown[1]._n_steps
    torch.testing.assert_close(shown[0].finish()["decoder"], shown[1].finish()["decoder"], rtol=1e-2, atol=1e-3)


@every_autoencoder
def test_training_in_low_precision_is_about_as_good(name: str, rows: torch.Tensor) -> None:
    r2 = [
        build(name, precision=each, n_epochs=15).fit(rows, progress=False).history_[-1]["train/r2"]
        for each in ("float32", "bfloat16")
    ]
    assert r2[0] > 0.5
    assert abs(r2[0] - r2[1]) < 0.05


@every_autoencoder
def test_a_gradient_that_is_not_finite_is_left_out(name: str, rows: torch.Tensor) -> None:
    learner = begun(name, rows, validation_share=0.0)
    show(learner, rows, 1)
    before = {key: tensor.detach().clone() for key, tensor in learner.architecture.learned.items()}
    learner._update(torch.full((64, WIDTH), 1e30))
    for key, tensor in learner.architecture.learned.items():
        torch.testing.assert_close(tensor.detach(), before[key], rtol=1e-6, atol=1e-7)
        assert tensor.grad is None
    show(learner, rows, 1)
    assert all(tensor.isfinite().all() for tensor in learner.finish().values())


@every_autoencoder
def test_the_state_is_whole_in_the_middle_of_everything(name: str, rows: torch.Tensor) -> None:
    """Between blocks that fill no batch, with patience, accumulation, revival and the best weights under way."""
    parameters = {"patience": 2, "accumulate": 2, "dead_after": 150, "log_every": 3}
    whole, resumed = (begun(name, rows, **parameters) for _ in range(2))
    blocks = [block for _ in range(4) for block in rows.split(333)]
    lines = []
    for number, block in enumerate(blocks):
        if number == 13:
            resumed.restore(whole.state())
            lines = [whole.news(), resumed.news()]
        for learner in (whole, resumed) if number >= 13 else (whole,):
            learner.observe(block)
            if number % 5 == 4:
                learner.end_pass()
    assert lines[1] == []
    assert whole.news() == resumed.news()
    assert whole.stopped == resumed.stopped
    expected, found = whole.state(), resumed.state()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    assert all(torch.equal(tensor, resumed.finish()[key]) for key, tensor in whole.finish().items())


def test_training_stops_when_the_held_out_rows_get_no_better_and_keeps_the_best() -> None:
    """Noise alone: what is learned of the few rows that are shown is worth nothing for others."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(300, WIDTH, generator=generator)
    parameters = {"n_epochs": 60, "validation_share": 0.4, "batch_size": 16, "decay": 0.0, "learning_rate": 0.3}
    learner = begun("topk_sae", noise, patience=3, **parameters)
    losses, weights = [], []
    while not learner.stopped:
        show(learner, noise, 1)
        losses.append(learner._test()["loss"])
        weights.append(learner.architecture.learned["encoder"].detach().clone())
    best = losses.index(min(losses))
    assert len(losses) - 1 - best == 3
    assert len(losses) < 60
    kept = learner.finish()["encoder"]
    assert torch.equal(kept, weights[best])
    assert not torch.equal(kept, weights[-1])
    assert len(build("topk_sae", **parameters).fit(noise, progress=False).history_) >= 60


def test_fitting_stops_early_too(rows: torch.Tensor) -> None:
    constant = build("topk_sae", learning_rate=0.0, n_epochs=50, patience=2).fit(rows, progress=False)
    # The first pass is the best of equal ones.
    passes = math.ceil(len(rows) * 0.95 / 64)
    assert len(constant.history_) == 3
    assert constant.history_[-1]["step"] == pytest.approx(3 * passes, abs=3)


def test_lines_come_at_steps_and_at_the_ends_of_passes(rows: torch.Tensor) -> None:
    history = build("topk_sae", log_every=7, validation_share=0.0, n_epochs=2).fit(rows, progress=False).history_
    steps = math.ceil(len(rows) / 64)
    assert [line["step"] for line in history] == sorted({*range(7, 2 * steps + 1, 7), steps, 2 * steps})
    assert all(isinstance(line["step"], int) for line in history)
    assert all(line["train/l0"] <= 4 for line in history)


def test_a_line_is_the_mean_since_the_last_one(rows: torch.Tensor) -> None:
    """With weights that do not move, the lines are what the formulas say of the rows that were shown."""
    learner = begun("topk_sae", rows, learning_rate=0.0, log_every=2, validation_share=0.0)
    learner.observe(rows[:256])
    dictionary = TopKSAEConcepts(n_concepts=N_CONCEPTS, k=4)
    dictionary.complete(learner.finish(), [], {})
    scale = float(rows.double().var(0, correction=0).mean())
    for line, part in zip(learner.news(), rows[:256].split(128), strict=True):
        codes = dictionary.encode(part)
        loss = float((part - dictionary.decode(codes)).square().mean()) / scale
        assert line["train/loss"] == pytest.approx(loss, rel=1e-4)
        assert line["train/r2"] == pytest.approx(1 - loss, abs=1e-4)
        assert line["train/l0"] == pytest.approx(float((codes > 0).sum(1).double().mean()))
        assert line["train/dead"] == 0.0


def test_the_learning_rate_rises_and_falls_and_goes_with_the_root_of_the_batch(rows: torch.Tensor) -> None:
    parameters = {"warmup": 0.1, "decay": 0.4, "learning_rate": 1.0, "validation_share": 0.0, "n_epochs": 10}
    learner = begun("topk_sae", rows, batch_size=256, **parameters)
    shown = [share * 10 * len(rows) for share in (0.0, 0.05, 0.1, 0.6, 0.8, 1.0)]
    rates = [learner._learning_rate(n) * math.sqrt(WIDTH) for n in shown]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 0.5, 0.0])
    larger = begun("topk_sae", rows, batch_size=256, accumulate=4, **parameters)
    assert larger._learning_rate(shown[2]) == pytest.approx(2 * learner._learning_rate(shown[2]))


def test_the_gradient_is_shortened(rows: torch.Tensor) -> None:
    norms = []
    for clip_norm in (1e9, 1e-3):
        learner = begun("topk_sae", rows, clip_norm=clip_norm)
        learner._gather(learner._normalised(rows[:64]), torch.empty(0, dtype=torch.int64))
        assert learner._clipped()
        gradients = [tensor.grad for tensor in learner.architecture.learned.values() if tensor.grad is not None]
        norms.append(float(torch.cat([gradient.flatten() for gradient in gradients]).norm()))
    assert norms[0] > 2e-3
    assert norms[1] == pytest.approx(1e-3, rel=1e-4)


@every_autoencoder
def test_the_decoders_rows_are_always_of_norm_one(name: str, rows: torch.Tensor) -> None:
    if name == "ra_topk_sae":
        pytest.skip("archetypes are of any length, as its docstring says")
    learner = begun(name, rows)
    for block in rows.split(100):
        learner.observe(block)
        norms = learner.architecture.decoder().detach().norm(dim=1)
        torch.testing.assert_close(norms, torch.ones(N_CONCEPTS))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"accumulate": 0}, "accumulate must be a whole number of at least 1, not 0"),
        ({"patience": 0}, "patience must be a whole number of at least 1, not 0"),
        ({"log_every": 0}, "log_every must be a whole number of at least 1, not 0"),
        ({"precision": "half"}, "precision is one of 'float32', 'bfloat16', not 'half'"),
        ({"patience": 3, "validation_share": 0.0}, "patience 3 needs held-out rows: a validation_share above 0"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build("topk_sae", **parameters)


def test_rows_are_held_out_by_content_alone(rows: torch.Tensor) -> None:
    chosen = _held_out(rows, 0.1)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert torch.equal(_held_out(rows[order], 0.1), chosen[order])
    assert 0.07 < float(chosen.double().mean()) < 0.13
    assert not _held_out(rows, 0.0).any()


@pytest.mark.slow
def test_it_explains_more_than_overcompletes_own_loop_and_leaves_fewer_dead(cebab_activations: torch.Tensor) -> None:
    """The same rows, sizes, k and steps; its learning rate is the best of three."""
    train, held_out = cebab_activations[:20_000], cebab_activations[20_000:24_000]
    ours = TopKSAEConcepts(n_concepts=256, k=8, n_epochs=6).fit(train, progress=False)
    codes = ours.encode(held_out)
    spread = (held_out - held_out.mean(dim=0)).square().sum()
    r2 = 1 - float((held_out - ours.decode(codes)).square().sum() / spread)
    theirs = [_overcompletes(train, held_out, rate) for rate in (1e-3, 3e-3, 1e-2)]
    assert r2 > max(found for found, _ in theirs)
    assert float((codes > 0).sum(dim=1).double().mean()) <= 8
    assert float((codes > 0).any(dim=0).logical_not().double().mean()) < min(dead for _, dead in theirs)


def _overcompletes(train: torch.Tensor, held_out: torch.Tensor, rate: float) -> tuple[float, float]:
    """R² of the held-out rows and the share of concepts that none of them holds; with the warm-up and decay of ours."""
    mean, scale = train.mean(dim=0), train.std()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sae = overcomplete_module("sae").TopKSAE(train.shape[1], 256, top_k=8)
        batches = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset((train - mean) / scale), batch_size=256, shuffle=True
        )
        optimizer = torch.optim.Adam(sae.parameters(), lr=rate)
        steps = 6 * len(batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / (0.05 * steps), max(0.0, steps - step) / (0.5 * steps))
        )
        overcomplete_module("sae.train").train_sae(
            sae, batches, lambda x, decoded, *_: (x - decoded).square().mean(), optimizer, schedule, 6, monitoring=0
        )
    with torch.no_grad():
        _, codes = sae.encode((held_out - mean) / scale)
        decoded = codes @ sae.get_dictionary() * scale + mean
    spread = (held_out - held_out.mean(dim=0)).square().sum()
    r2 = 1 - float((held_out - decoded).square().sum() / spread)
    return r2, float((codes > 0).any(dim=0).logical_not().double().mean())


def test_the_window_of_dead_concepts_grows_with_the_dictionary() -> None:
    windows = [TopKSAEConcepts(n_concepts=n, k=2).dead_window for n in (8, 1000, 16_000)]
    assert windows == [4000, 4000, 64_000]
    assert TopKSAEConcepts(n_concepts=8, k=2, dead_after=7).dead_window == 7
