"""Every family of probes keeps the promises of dictionaries, and learns what an independent solver learns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC, OneClassSVM

import interpreto_mlops.concepts as concepts
from interpreto_mlops.concepts import (
    DICTIONARIES,
    IMPORTANCE,
    PROBES,
    ConceptDictionary,
    ModelWithSplitPoints,
    Probe,
    ablate,
    concept_importance,
    cross_validate,
    evaluate,
    fit_together,
    intervention_effect,
    label_concepts,
    local_importance,
    stability,
    top_words,
)
from interpreto_mlops.concepts.probes.calibration import best_threshold, platt
from interpreto_mlops.concepts.probes.data_description import description
from interpreto_mlops.concepts.probes.distances import DistanceProbe
from interpreto_mlops.concepts.probes.labels import label_matrix
from interpreto_mlops.concepts.probes.linear import LinearProbe
from interpreto_mlops.concepts.rows import as_rows
from interpreto_mlops.concepts.training import FITTED
from interpreto_mlops.errors import DataError, InputError, NotFittedError, UnknownNameError
from interpreto_mlops.text.hiding import is_hash
from interpreto_mlops.tracking import load_dictionary, log_dictionary

WIDTH, N_ROWS = 12, 400
NAMES = ("first", "second")
# One with a direction and one without go through a store among the quick tests.
QUICK = ("logistic", "svdd")
every_family = pytest.mark.parametrize("name", PROBES.names())
LINEAR = [name for name, family in PROBES.items() if issubclass(family, LinearProbe)]
DISTANCES = [name for name, family in PROBES.items() if issubclass(family, DistanceProbe)]


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Rows far from the origin, with dimensions of different sizes."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N_ROWS, WIDTH, generator=generator) * torch.linspace(0.5, 3, WIDTH) + 5.0


@pytest.fixture(scope="module")
def labels(rows: torch.Tensor) -> np.ndarray:
    """Two concepts that hold where a row is near a place, with some noise; the second is the rarer one."""
    generator = torch.Generator().manual_seed(1)
    places = 5.0 + torch.randn(2, WIDTH, generator=generator)
    distances = torch.cdist(rows, places) + 0.3 * torch.randn(N_ROWS, 2, generator=generator)
    return (distances < torch.tensor([distances[:, 0].quantile(0.4), distances[:, 1].quantile(0.2)])).numpy()


@pytest.fixture(scope="module")
def fitted(rows: torch.Tensor, labels: np.ndarray) -> Callable[[str], Probe]:
    """A factory of fitted probes; each call returns a copy."""
    cache = {name: PROBES.get(name)().fit(rows, labels, names=NAMES) for name in PROBES.names()}
    return lambda name: copy.deepcopy(cache[name])


def test_registered_classes_can_be_imported_and_are_no_dictionaries_of_another_name() -> None:
    for name, family in PROBES.items():
        assert getattr(concepts, family.__name__) is family
        assert family.__name__ in concepts.__all__
        assert family.name == name
        assert name not in DICTIONARIES
    assert {"ridge", "logistic", "linear_svm", "mean_difference", "cosine", "dot_product"} == set(LINEAR)
    assert {"squared_distance", "diagonal_mahalanobis", "svdd"} == set(DISTANCES)


@every_family
class TestEveryFamily:
    def test_shapes_and_signs(self, name: str, rows: torch.Tensor, fitted: Callable[[str], Probe]) -> None:
        probe = fitted(name)
        codes = probe.encode(rows)
        assert codes.shape == (N_ROWS, 2)
        assert codes.dtype == torch.float32
        assert probe.n_concepts == 2
        assert probe.width == WIDTH
        assert probe.signed
        assert bool((codes < 0).any())
        assert bool((codes > 0).any())
        assert torch.allclose(probe.dictionary.norm(dim=1), torch.ones(2), atol=1e-5)

    def test_it_learns_something(self, name: str, rows: Any, labels: Any, fitted: Callable[[str], Probe]) -> None:
        said = fitted(name).encode(rows).numpy() > 0
        # A place is no direction: those with one see only on which side of the mean it lies.
        for column in range(2):
            assert balanced_accuracy_score(labels[:, column], said[:, column]) > 0.6

    def test_saved_and_loaded_it_is_the_same(
        self, name: str, rows: torch.Tensor, fitted: Callable[[str], Probe], tmp_path: Path
    ) -> None:
        probe = fitted(name)
        loaded = ConceptDictionary.load(probe.save(tmp_path / "probe"))
        assert type(loaded) is type(probe)
        assert torch.equal(loaded.encode(rows), probe.encode(rows))
        assert loaded.parameters == probe.parameters
        assert isinstance(loaded, Probe)
        assert loaded.names == NAMES
        assert loaded.descriptions == probe.descriptions

    def test_a_row_has_the_same_score_alone(self, name: str, rows: torch.Tensor, fitted: Callable) -> None:
        probe = fitted(name)
        alone = torch.cat([probe.encode(rows[i : i + 1]) for i in range(60)])
        assert torch.equal(alone, probe.encode(rows)[:60])

    def test_the_score_grows_along_the_direction(self, name: str, rows: torch.Tensor, fitted: Callable) -> None:
        """For a direction anywhere; for a place seen from the mean of the rows, whence the direction leads to it."""
        probe = fitted(name)
        step = 0.01 * probe.dictionary
        start = rows.mean(dim=0, keepdim=True) if name in DISTANCES else rows[:50]
        for concept in range(2):
            grown = probe.encode(start + step[concept])[:, concept] - probe.encode(start)[:, concept]
            if name == "cosine":  # along it everywhere but where a row already points that way
                assert float((grown > -1e-6).float().mean()) > 0.95
            else:
                assert bool((grown > 0).all())

    def test_one_concept_is_learned_as_among_others(
        self, name: str, rows: torch.Tensor, labels: np.ndarray, fitted: Callable[[str], Probe]
    ) -> None:
        alone = PROBES.get(name)().fit(rows, labels[:, 1])
        assert torch.equal(alone.encode(rows)[:, 0], fitted(name).encode(rows)[:, 1])

    def test_rows_without_a_label_are_left_out(self, name: str, rows: torch.Tensor, labels: np.ndarray) -> None:
        some = labels.astype(float)
        some[::3] = np.nan
        family = PROBES.get(name)
        kept = np.arange(N_ROWS) % 3 > 0
        assert torch.equal(family().fit(rows, some).dictionary, family().fit(rows[kept], labels[kept]).dictionary)

    @pytest.mark.parametrize("normalisation", ["none", "centre", "standardise", "unit_norm"])
    def test_every_normalisation_is_kept(
        self, name: str, rows: torch.Tensor, labels: np.ndarray, normalisation: str, tmp_path: Path
    ) -> None:
        probe = PROBES.get(name)(normalisation=normalisation).fit(rows, labels[:, 0])
        loaded = ConceptDictionary.load(probe.save(tmp_path))
        assert torch.equal(loaded.encode(rows), probe.encode(rows))
        scaled = PROBES.get(name)(normalisation=normalisation).fit(rows * 4 + 64, labels[:, 0])
        if normalisation in ("standardise", "unit_norm"):  # whatever the unit of the rows is
            assert torch.allclose(scaled.encode(rows * 4 + 64), probe.encode(rows), rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize("calibration", ["balanced", "platt"])
    def test_calibration_moves_the_boundary_only(
        self, name: str, rows: torch.Tensor, labels: np.ndarray, calibration: str
    ) -> None:
        probe = PROBES.get(name)(calibration=calibration).fit(rows, labels)
        again = PROBES.get(name)(calibration=calibration).fit(rows, labels)
        assert torch.equal(probe.encode(rows), again.encode(rows))
        if calibration == "platt":
            chance = probe.probabilities(rows)
            assert torch.allclose(chance, torch.sigmoid(probe.encode(rows)))
            # Log odds: what is said to hold in a share of the rows holds in about that share.
            assert np.allclose(chance.mean(dim=0).numpy(), labels.mean(axis=0), atol=0.1)
        else:
            with pytest.raises(InputError, match="fit with 'platt'"):
                probe.probabilities(rows)


class TestAgreement:
    """Scores are those of scikit-learn on the same features."""

    @pytest.fixture
    def scaled(self, rows: torch.Tensor) -> np.ndarray:
        return StandardScaler().fit_transform(rows.double().numpy())

    @pytest.mark.parametrize(
        ("name", "solver"),
        [
            ("ridge", RidgeClassifier(alpha=1.0, class_weight="balanced")),
            ("logistic", LogisticRegression(class_weight="balanced", max_iter=1000)),
            ("linear_svm", LinearSVC(class_weight="balanced", max_iter=10_000, random_state=0)),
        ],
    )
    def test_regressions(self, name: str, solver: Any, rows: Any, labels: Any, scaled: Any, fitted: Callable) -> None:
        for column in range(2):
            expected = solver.fit(scaled, labels[:, column]).decision_function(scaled)
            assert np.allclose(fitted(name).encode(rows)[:, column].numpy(), expected, rtol=1e-3, atol=2e-3)

    def test_a_logistic_probe_without_ridge_is_the_maximum_of_the_likelihood(self, rows: Any, labels: Any) -> None:
        probe = PROBES.get("logistic")(c=1e6, balanced=False).fit(rows, labels[:, 0])
        design = np.c_[StandardScaler().fit_transform(rows.double().numpy()), np.ones(N_ROWS)]
        codes = probe.encode(rows)[:, 0].double().numpy()
        # The gradient of the log-likelihood.
        assert np.abs(design.T @ (labels[:, 0] - expit(codes))).max() < 0.05

    def test_mean_difference_is_the_nearest_centroid(self, rows: Any, labels: Any, fitted: Callable) -> None:
        codes = fitted("mean_difference").encode(rows).numpy()
        for column in range(2):
            nearest = NearestCentroid().fit(rows.numpy(), labels[:, column]).predict(rows.numpy())
            assert np.mean((codes[:, column] > 0) == nearest) > 0.995

    def test_cosine(self, rows: Any, labels: Any, fitted: Callable) -> None:
        centred = (rows - rows.mean(dim=0)).double().numpy()
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        expected = cosine_similarity(centred, unit[labels[:, 0]].mean(axis=0, keepdims=True))[:, 0]
        found = fitted("cosine").encode(rows)[:, 0].numpy()
        assert np.allclose(found - found.mean(), expected - expected.mean(), atol=1e-5)

    def test_dot_product_and_distances_are_what_they_say(self, rows: Any, labels: Any, fitted: Callable) -> None:
        holds = labels[:, 0]
        centred = (rows - rows.mean(dim=0)).double().numpy()
        centre, spread = centred[holds].mean(axis=0), 0.9 * centred[holds].var(axis=0) + 0.1 * centred.var(axis=0)
        for name, expected in (
            ("dot_product", centred @ centre),
            ("squared_distance", -((centred - centre) ** 2).sum(axis=1)),
            ("diagonal_mahalanobis", -((centred - centre) ** 2 / spread).sum(axis=1)),
        ):
            half_way = (expected[holds].mean() + expected[~holds].mean()) / 2
            assert np.allclose(fitted(name).encode(rows)[:, 0].numpy(), expected - half_way, rtol=1e-4, atol=1e-3)


class TestDataDescription:
    def test_is_the_optimum_of_the_convex_program(self) -> None:
        rows = np.random.default_rng(0).standard_normal((30, 3)) * [1, 2, 3]
        centre, radius = description(rows, 0.3)

        def objective(parameters: np.ndarray) -> float:
            distances = ((rows - parameters[1:]) ** 2).sum(axis=1)
            return float(parameters[0] + np.maximum(0, distances - parameters[0]).sum() / (0.3 * len(rows)))

        own = objective(np.r_[radius, centre])
        start = np.r_[10.0, rows.mean(axis=0)]
        fine = {"maxiter": 40_000, "maxfev": 40_000, "xatol": 1e-10, "fatol": 1e-12}
        best = minimize(objective, start, method="Nelder-Mead", options=fine)
        assert own <= best.fun * (1 + 1e-5)

    def test_is_the_one_class_machine_on_rows_of_norm_one(self) -> None:
        """Where all rows are as long, the two problems have the same dual."""
        rows = np.random.default_rng(1).standard_normal((80, 5)) + np.eye(5)[0] * 2
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        machine = OneClassSVM(kernel="linear", nu=0.2, tol=1e-10).fit(rows)
        weights = machine.dual_coef_[0] / machine.dual_coef_.sum()
        centre, radius = description(rows, 0.2)
        assert np.allclose(centre, weights @ machine.support_vectors_, atol=1e-4)
        outside = ((rows - centre) ** 2).sum(axis=1) > radius + 1e-6
        assert outside.mean() <= 0.2

    def test_with_every_row_inside_it_is_the_smallest_ball(self) -> None:
        square = np.asarray([[1.0, 1], [1, -1], [-1, 1], [-1, -1], [0, 0.5]])
        centre, radius = description(square, 0.01)
        assert np.allclose(centre, 0, atol=1e-4)
        assert radius == pytest.approx(2, rel=1e-4)


class TestCalibration:
    def test_the_threshold_is_the_best_of_all(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(30):
            scores, holds = rng.standard_normal(25).round(1), rng.random(25) < 0.3
            holds[:2] = [True, False]
            found = balanced_accuracy_score(holds, scores > best_threshold(scores, holds))
            every = [balanced_accuracy_score(holds, scores > t) for t in np.r_[scores - 1e-6, scores + 1e-6]]
            assert found == pytest.approx(max(every))

    def test_platt_is_the_smoothed_logistic_regression(self) -> None:
        rng = np.random.default_rng(0)
        scores, holds = rng.standard_normal(300) * 5 + 100, rng.random(300) < 0.4
        scores[holds] += 4
        gain, bias = platt(scores, holds)
        targets = np.where(holds, (holds.sum() + 1) / (holds.sum() + 2), 1 / ((~holds).sum() + 2))
        twice = LogisticRegression(C=1e8, max_iter=10_000, tol=1e-10).fit(
            np.r_[scores, scores][:, None] - 100, np.r_[np.ones(300), np.zeros(300)], np.r_[targets, 1 - targets]
        )
        assert gain == pytest.approx(twice.coef_[0, 0], rel=1e-3)
        assert bias + 100 * gain == pytest.approx(twice.intercept_[0], rel=1e-2)

    def test_a_bias_on_held_out_texts_helps_where_the_boundary_is_off(self, rows: Any) -> None:
        """One in twelve rows holds it, and the sphere around them is far too wide."""
        generator = torch.Generator().manual_seed(4)
        x = torch.randn(1200, WIDTH, generator=generator)
        holds = torch.arange(1200) % 12 == 0
        x[holds] += 2.0
        scores = []
        for calibration in ("none", "balanced"):
            probe = PROBES.get("svdd")(nu=1e-6, calibration=calibration).fit(x[:900], holds[:900])
            scores.append(balanced_accuracy_score(holds[900:], probe.encode(x[900:])[:, 0] > 0))
        assert scores[1] > scores[0] + 0.05

    def test_rows_of_a_text_are_held_out_together(self, rows: Any, labels: Any) -> None:
        probe = PROBES.get("mean_difference")(calibration="balanced")
        groups = np.arange(N_ROWS) // 2
        together = probe.fit(rows, labels[:, 0], groups=groups).encode(rows)
        assert not torch.equal(together, probe.fit(rows, labels[:, 0]).encode(rows))
        with pytest.raises(DataError, match="needs 2 with the concept and 2 without; there are only 1"):
            probe.fit(rows, labels[:, 0], groups=np.zeros(N_ROWS))


class TestDecoding:
    @pytest.mark.parametrize("name", [name for name in LINEAR if name != "cosine"])
    def test_it_is_the_least_squares_reconstruction(self, name: str, rows: torch.Tensor, fitted: Callable) -> None:
        probe = fitted(name)
        decoded = probe.decode(probe.encode(rows))
        centred = (rows - probe.tensor("shift")).double()
        span = torch.linalg.qr(probe.dictionary.double().T).Q
        assert torch.allclose(decoded.double(), centred @ span @ span.T + probe.tensor("shift"), atol=2e-4)
        assert torch.allclose(probe.encode(decoded), probe.encode(rows), rtol=1e-3, atol=1e-3)

    def test_a_change_of_one_score_leaves_the_others(self, rows: torch.Tensor, fitted: Callable) -> None:
        probe = fitted("logistic")
        codes = probe.encode(rows)
        moved = codes + torch.tensor([2.0, 0.0])
        after = probe.encode(rows + probe.decode(moved) - probe.decode(codes))
        assert torch.allclose(after, moved, atol=1e-3)

    @pytest.mark.parametrize("name", LINEAR)
    def test_the_gradient_is_that_of_decoding(self, name: str, rows: torch.Tensor, fitted: Callable) -> None:
        probe = fitted(name)
        codes, of_rows = probe.encode(rows[:5]), torch.randn(5, WIDTH)
        by_autograd = ConceptDictionary.gradient(probe, codes, of_rows)
        assert torch.allclose(probe.gradient(codes, of_rows), by_autograd, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", DISTANCES)
    def test_a_distance_cannot_be_decoded(self, name: str, rows: torch.Tensor, fitted: Callable) -> None:
        probe = fitted(name)
        for call in (probe.decode, lambda codes: probe.gradient(codes, rows), lambda _: evaluate(probe, rows)):
            with pytest.raises(InputError, match="says how far a row is and not where"):
                call(probe.encode(rows))


class TestBadInput:
    def test_fits_that_cannot_be(self, rows: torch.Tensor, labels: np.ndarray) -> None:
        family = PROBES.get("logistic")
        for error, words, call in (
            (InputError, r"give fit\(activations, labels\)", lambda: family().fit(rows)),
            (InputError, "learns from labels", lambda: fit_together([family()], rows, progress=False)),
            (InputError, "takes no 'checkpoint'", lambda: family().fit(rows, labels, checkpoint="x")),
            (InputError, "not 3", lambda: family().fit(rows, [0, 1, 0])),
            (InputError, "or NaN where it is not known, not 2", lambda: family().fit(rows, labels * 2)),
            (InputError, "label_concepts", lambda: family().fit(rows, ["good"] * N_ROWS)),
            (InputError, "as many names", lambda: family().fit(rows, labels, names=["one"])),
            (InputError, "leave n_concepts out", lambda: family(n_concepts=3).fit(rows, labels)),
            (InputError, "NaN or infinite", lambda: family().fit(torch.full_like(rows, torch.nan), labels)),
            (DataError, "none of the 400 labelled rows hold concept 0", lambda: family().fit(rows, np.zeros(N_ROWS))),
            (DataError, "no row has a label", lambda: family().fit(rows, np.full(N_ROWS, np.nan))),
            (UnknownNameError, "'whiten'", lambda: family(normalisation="whiten")),
            (UnknownNameError, "'isotonic'", lambda: family(calibration="isotonic")),
            (UnknownNameError, "'word'", lambda: family().fit(rows, labels, per="word")),
            (InputError, "calibration_share must be a number from 0.01", lambda: family(calibration_share=0.0)),
            (InputError, "alpha", lambda: PROBES.get("ridge")(alpha=-1.0)),
            (NotFittedError, "not fitted", lambda: family().encode(rows)),
        ):  # fmt: skip
            with pytest.raises(error, match=words):
                call()

    def test_a_probe_that_does_not_converge_says_so(self, rows: torch.Tensor, labels: np.ndarray) -> None:
        with pytest.warns(UserWarning, match="stopped before it converged"):
            PROBES.get("logistic")(max_iter=1).fit(rows, labels)

    def test_of_many_rows_an_even_sample_is_learned_from(self, rows: torch.Tensor, labels: np.ndarray) -> None:
        one, other = (PROBES.get("ridge")(max_rows=100, seed=seed).fit(rows, labels) for seed in (0, 1))
        assert not torch.equal(one.dictionary, other.dictionary)
        assert torch.equal(one.dictionary, PROBES.get("ridge")(max_rows=100).fit(rows, labels).dictionary)


class TestLabels:
    def test_columns_become_concepts(self) -> None:
        names, matrix = label_concepts(["yes", "No", "", None, "yes"], "polite")
        assert names == ("polite",)
        assert np.array_equal(matrix[:, 0], [1, 0, np.nan, np.nan, 1], equal_nan=True)
        names, matrix = label_concepts(["good", "bad", "", "good"], "food")
        assert names == ("food=bad", "food=good")
        assert np.array_equal(matrix[3], [0, 1])
        assert np.isnan(matrix[2]).all()
        with pytest.raises(DataError, match=r"the labels 'food' have the values \['good'\]"):
            label_concepts(["good", ""], "food")
        with pytest.raises(DataError, match="60 values"):
            label_concepts([str(i) for i in range(60)], "text")

    def test_of_texts_and_of_rows(self) -> None:
        class Rows:
            text_ids, texts = np.asarray([0, 0, 2]), ("a b", "", "c")

            def __len__(self) -> int:
                return 3

        with pytest.raises(InputError, match="say by per="):
            label_matrix([0, 1, 1], Rows())
        assert label_matrix([0, 1, 1], Rows(), "text")[:, 0].tolist() == [0, 0, 1]
        assert label_matrix([0, 1, 1], Rows(), "row")[:, 0].tolist() == [0, 1, 1]
        with pytest.raises(InputError, match="a tensor does not know the texts"):
            label_matrix([0, 1], as_rows(torch.zeros(2, 3)), "text")


class TestAsDictionary:
    """What works on dictionaries works on a probe."""

    @pytest.fixture
    def split(self, tiny_model: Callable) -> ModelWithSplitPoints:
        return ModelWithSplitPoints(tiny_model(), [1])

    @pytest.fixture
    def activations(self, split: ModelWithSplitPoints, texts: list[str]) -> Any:
        return split.get_activations(texts * 4, progress=False)[1]

    @pytest.fixture
    def praise(self, activations: Any) -> np.ndarray:
        """Whether each row is a word of praise."""
        places = zip(activations.text_ids, activations.spans, strict=True)
        words = [activations.texts[text][start:end].lower() for text, (start, end) in places]
        return np.asarray([word in {"great", "loved", "fine", "quick"} for word in words])

    @pytest.fixture
    def probe(self, activations: Any, praise: np.ndarray) -> Probe:
        return PROBES.get("logistic")().fit(activations, praise, names=["praise"], per="row")

    def test_top_words_find_the_labelled_words(self, probe: Probe, activations: Any) -> None:
        (found,) = top_words(probe, activations)
        assert {word.word for word in found.words[:4]} == {"great", "loved", "fine", "quick"}
        assert probe.descriptions is not None
        assert (probe.descriptions[0].label, probe.descriptions[0].origin) == ("praise", "human")
        assert probe.descriptions[0].words == found.words

    def test_metrics(self, probe: Probe, activations: Any) -> None:
        values = evaluate(probe, activations, ["reconstruction/r2", "complexity/l0"])
        assert 0 < values["reconstruction/r2"] < 1
        assert stability([probe, probe]) == pytest.approx(1)

    def test_importance_is_the_directional_derivative(self, probe: Probe, split: Any, texts: list[str]) -> None:
        importance = concept_importance(split, probe, texts, targets=0, method="gradient", progress=False)
        assert importance.values.shape == (3, 1)
        assert np.isfinite(importance.values[0]).all()
        (local,) = local_importance(split, probe, texts[:1], method="gradient", targets=0)
        step = 1e-3
        moved = intervention_effect(split, probe, texts[:1], {0: step}, targets=0)
        assert float(moved.effects[0]) / step == pytest.approx(float(local.totals[0, 0]), rel=0.05)

    @pytest.mark.parametrize("method", IMPORTANCE.names())
    def test_every_way_of_importance(self, method: str, probe: Probe, split: Any, texts: list[str]) -> None:
        found = concept_importance(split, probe, texts[:2], targets=1, method=method, progress=False)
        assert np.isfinite(found.values[1]).all()
        assert found.values[1].any()

    def test_those_who_listen_are_told_of_a_fit_and_of_no_fold(self, activations: Any, praise: np.ndarray) -> None:
        seen: list[Any] = []
        FITTED.add(seen.append)
        try:
            probe = PROBES.get("ridge")().fit(activations, praise, per="row")
            cross_validate(probe, activations, praise, per="row", folds=2, repeats=1)
        finally:
            FITTED.remove(seen.append)
        assert seen == [(probe,)]

    def test_ablation_puts_rows_on_the_boundary(self, probe: Probe, split: Any, texts: list[str]) -> None:
        inputs = split.model.inputs(list(split.model.encode(texts[:2])))
        with ablate(split, probe, [0]):
            found = split.capture(inputs)["bert.encoder.layer.1"]
        assert found is not None
        plain = split.capture(inputs)["bert.encoder.layer.1"]
        kept = inputs["attention_mask"].bool()
        assert float(probe.encode(plain[kept]).abs().max()) > 0.1
        moved = plain[kept] + probe.decode(torch.zeros(int(kept.sum()), 1)) - probe.decode(probe.encode(plain[kept]))
        assert float(probe.encode(moved).abs().max()) < 1e-3

    @pytest.mark.usefixtures("nobody")
    @pytest.mark.parametrize(
        "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in PROBES.names()]
    )
    def test_logged_registered_and_loaded(self, name: str, activations: Any, praise: Any, database: str) -> None:
        import mlflow

        mlflow.set_tracking_uri(database)
        probe = PROBES.get(name)().fit(activations, praise, names=["praise"], per="row")
        logged = log_dictionary(probe, registered_model_name="praise", metrics={"probing/accuracy": 0.9}, draw=False)
        loaded = load_dictionary("models:/praise/1")
        assert (logged.name, logged.version) == ("praise", "1")
        assert type(loaded) is type(probe)
        assert torch.equal(loaded.encode(activations), probe.encode(activations))
        served = mlflow.pyfunc.load_model("models:/praise/1")
        given = pd.DataFrame({"activations": activations.tensor()[:3].double().tolist()})
        assert np.array_equal(served.predict(given), probe.encode(activations)[:3].numpy())
        labels = mlflow.artifacts.load_text(f"runs:/{logged.run_id}/concepts/labels.json")
        assert "praise" in labels
        page = mlflow.artifacts.load_text(f"runs:/{logged.run_id}/concepts/concepts.html")
        assert "praise" in page

    def test_hidden_it_holds_no_names(self, probe: Probe, tmp_path: Path) -> None:
        hidden = probe.hidden()
        card = (hidden.save(tmp_path) / "dictionary.json").read_text()
        assert "praise" not in card
        assert "great" not in card
        assert isinstance(hidden, Probe)
        assert hidden.names is not None
        assert probe.names == ("praise",)
        assert is_hash(hidden.names[0])


@pytest.mark.parametrize("name", [name for name, _ in PROBES.items()])
def test_a_probe_learns_other_labels_anew(name: str) -> None:
    """The first labels say nothing of how many concepts the next ones have."""
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((60, 3))).float()
    labels = (rows > 0).numpy()
    again = PROBES.get(name)().fit(rows, labels[:, 0]).fit(rows, labels, names=["x", "y", "z"])
    once = PROBES.get(name)().fit(rows, labels, names=["x", "y", "z"])
    assert torch.equal(again.encode(rows), once.encode(rows))
    assert again.n_concepts == 3


@pytest.mark.parametrize("name", [name for name, _ in PROBES.items()])
def test_what_differs_by_rounding_alone_is_not_blown_up(name: str) -> None:
    """A first token before any attention has the same vector in every text, up to the last bits."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((400, 3)).astype(np.float32)
    rows[:, 1] = np.float32(0.1) * (1 + 1e-7 * rng.integers(-3, 4, 400)).astype(np.float32)
    other = rows.copy()
    other[:, 1] = np.float32(0.1)
    probe = PROBES.get(name)(normalisation="standardise").fit(torch.from_numpy(rows), rows[:, 0] > 0)
    assert torch.allclose(probe.encode(torch.from_numpy(rows)), probe.encode(torch.from_numpy(other)), atol=1e-4)
