"""Autologging: what is logged, where, and that nothing else changes."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.entities import Run

import interpreto_mlops as im
from benchmarks.autolog import measure_autolog
from benchmarks.subjects import Shape
from interpreto_mlops.attributions import AttributionSet, KernelShap, Lime, Occlusion, Saliency
from interpreto_mlops.attributions.base import EXPLAINED, Attributor
from interpreto_mlops.attributions.metrics import Deletion, Metric, MetricResult, evaluate
from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts, TopKSAEConcepts, fit_together
from interpreto_mlops.concepts.training import FITTED
from interpreto_mlops.errors import InputError, ModelOutputError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.observers import Observers, unobserved
from interpreto_mlops.tracking.store import Store
from interpreto_mlops.tracking.text_models import log_text_model
from tests.mlflow_stores import global_state


@pytest.fixture(autouse=True)
def _off() -> Iterator[None]:
    """Autologging is off before and after each test."""
    yield
    im.autolog(disable=True)
    assert not EXPLAINED._known
    assert not FITTED._known


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(300, 8, generator=torch.Generator().manual_seed(0))


def runs(store: Store) -> list[Run]:
    found = store.client.search_runs([store.experiment_id], order_by=["attributes.start_time"])
    return list(found)


def kinds(store: Store) -> list[str | None]:
    return sorted(str(each.data.tags.get("interpreto.kind")) for each in runs(store))


class TestExplanations:
    def test_go_into_a_run_of_their_own(
        self, user: Store, model: TextModel, texts: list[str], download: Callable[[Store, str], Path]
    ) -> None:
        im.autolog()
        before = global_state()
        explanations = Occlusion(model)(texts)
        assert global_state() == before
        (found,) = runs(user)
        assert found.info.status == "FINISHED"
        assert found.info.run_name == "occlusion"
        assert found.data.tags["interpreto.kind"] == "attributions"
        assert found.data.tags["interpreto.model.fingerprint"] == model.fingerprint
        assert found.data.params["method"] == "occlusion"
        assert found.data.metrics["cost/evaluations_run"] == explanations.counters["evaluations_run"]
        assert AttributionSet.load(download(user, found.info.run_id) / "attributions") == explanations

    def test_show_the_first_texts_and_keep_all(
        self, user: Store, model: TextModel, texts: list[str], download: Callable[[Store, str], Path]
    ) -> None:
        im.autolog()
        explanations = Saliency(model)(texts * 2)
        (found,) = runs(user)
        folder = download(user, found.info.run_id) / "attributions"
        assert AttributionSet.load(folder) == explanations
        page = (folder / "attributions.html").read_text()
        assert f"{len(explanations) - 4} more texts are left out here" in page

    def test_go_into_the_open_run_once(self, user: Store, model: TextModel, texts: list[str]) -> None:
        im.autolog()
        with mlflow.start_run() as active:
            Occlusion(model)(texts)
            assert mlflow.active_run().info.run_id == active.info.run_id
            Saliency(model)(texts)
        first, second = sorted(runs(user), key=lambda each: each.info.run_id != active.info.run_id)
        assert first.info.run_id == active.info.run_id
        assert (first.data.params["method"], second.data.params["method"]) == ("occlusion", "saliency")
        assert second.info.status == "FINISHED"

    def test_are_the_same_to_the_bit(self, user: Store, texts: list[str], tiny_model: Callable[..., TextModel]) -> None:
        def results(log: bool) -> list[AttributionSet]:
            im.autolog(disable=not log)
            model = tiny_model()
            torch.manual_seed(0)
            np.random.seed(0)
            made = [
                explainer(model, **options)(iter(texts))
                for explainer, options in ((KernelShap, {"n_perturbations": 64}), (Lime, {}), (Saliency, {}))
            ]
            state.append((torch.get_rng_state(), np.random.get_state()[1].copy(), warnings.filters[:]))
            return made

        state: list[Any] = []
        plain, logged = results(False), results(True)
        assert len(runs(user)) == 3
        for a, b in zip(plain, logged, strict=True):
            assert a == b  # NaN and all, by exact comparison of arrays
            assert {k: v for k, v in a.counters.items() if "second" not in k} == {
                k: v for k, v in b.counters.items() if "second" not in k
            }
        assert all(torch.equal(x[0], y[0]) and np.array_equal(x[1], y[1]) for x, y in [state])
        assert state[0][2] == state[1][2]

    def test_streams_are_streams(self, user: Store, model: TextModel, texts: list[str]) -> None:
        """A stream is lazy, and no call: it is not logged."""
        im.autolog()
        asked: list[str] = []

        def given() -> Iterator[str]:
            for text in texts * 400:
                asked.append(text)
                yield text

        stream = Occlusion(model).stream(given())
        assert not asked
        assert next(stream).text == texts[0]
        assert 0 < len(asked) < 2000
        stream.close()
        assert not runs(user)

    def test_errors_are_the_same(self, user: Store, model: TextModel, texts: list[str]) -> None:
        explainer = Occlusion(model)

        def failing() -> Iterator[str]:
            yield texts[0]
            raise KeyError("mine")

        calls: list[tuple[Callable[[], Any], type[Exception]]] = [
            (lambda: explainer("one string"), InputError),
            (lambda: explainer(texts, "purple"), InputError),
            (lambda: explainer(failing()), KeyError),
        ]
        for call, kind in calls:
            messages = []
            for log in (False, True):
                im.autolog(disable=not log)
                with pytest.raises(kind) as caught:
                    call()
                messages.append(str(caught.value))
            assert messages[0] == messages[1]
        with torch.no_grad():
            next(model.model.parameters()).fill_(float("nan"))
        with pytest.raises(ModelOutputError):
            explainer(texts)
        assert not runs(user)

    def test_no_texts_are_nothing_to_log(self, user: Store, model: TextModel) -> None:
        im.autolog()
        assert len(Occlusion(model)([])) == 0
        assert not runs(user)

    @pytest.mark.parametrize("ask", ["evaluate", "call"])
    def test_what_a_metric_explains_is_part_of_the_metric(
        self, user: Store, model: TextModel, texts: list[str], ask: str
    ) -> None:
        @dataclass(frozen=True, kw_only=True)
        class Again(Metric):
            """Explains once more, by the public call, as a metric of a user's own may do."""

            name: ClassVar[str] = "again"
            higher_is_better: ClassVar[bool] = True
            bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
            explainer: Attributor = field(kw_only=False)

            def __call__(self, explanations: AttributionSet, *, progress: bool | None = False) -> MetricResult:
                again = self.explainer([item.text for item in explanations])
                same = np.asarray([float(a == b) for a, b in zip(again, explanations, strict=True)])
                return MetricResult(
                    name=self.name,
                    method=explanations.method,
                    values=same,
                    random_values=same,
                    better_than_random=same,
                    higher_is_better=True,
                )

        im.autolog()
        explainer = Occlusion(model)
        explanations = explainer(texts)
        result = (
            evaluate(explanations, model, [Again(explainer)])["again"]
            if ask == "evaluate"
            else Again(explainer)(explanations)
        )
        assert result.mean == 1.0
        Deletion(model)(explanations)
        assert len(runs(user)) == 1
        explainer(texts)  # after the metric it is logged again
        assert len(runs(user)) == 2

    def test_what_jobs_and_evaluations_explain_is_theirs(self, user: Store, model: TextModel, texts: list[str]) -> None:
        im.autolog()
        im.compare_methods(model, texts, ["occlusion"], ["deletion"], n_random=2)
        assert kinds(user) == ["attributions", "report"]
        logged = log_text_model(user, None, model, name="reviews")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # MLflow's own, on pandas 3
            mlflow.models.evaluate(
                logged.uri,
                pd.DataFrame({"text": texts}),
                model_type="text-classifier",
                evaluators="interpreto",
                evaluator_config={"metrics": ["deletion"], "n_random": 2},
            )
        assert kinds(user) == ["attributions", "attributions", "report"]


class TestDictionaries:
    def test_a_fit_is_logged_once(self, user: Store, rows: torch.Tensor) -> None:
        im.autolog()
        fitted = PCAConcepts(n_concepts=4).fit(rows)
        (found,) = runs(user)
        assert found.data.tags["interpreto.kind"] == "concepts"
        (output,) = found.outputs.model_outputs
        loaded = im.load_dictionary(f"models:/{output.model_id}")
        assert all(torch.equal(loaded.weights[name], fitted.weights[name]) for name in fitted.weights)

    def test_together_each_has_a_run(self, user: Store, rows: torch.Tensor) -> None:
        im.autolog()
        with mlflow.start_run() as active:
            fit_together([TopKSAEConcepts(n_concepts=6, k=2, seed=seed) for seed in range(3)], rows, progress=False)
        found = runs(user)
        assert kinds(user) == ["concepts"] * 3
        assert active.info.run_id in {each.info.run_id for each in found}
        assert {each.data.params["seed"] for each in found} == {"0", "1", "2"}
        assert all(any(name.startswith("train/") for name in each.data.metrics) for each in found)

    def test_weights_are_the_same_to_the_bit(self, user: Store, rows: torch.Tensor) -> None:
        def fitted() -> dict[str, torch.Tensor]:
            return TopKSAEConcepts(n_concepts=6, k=2).fit(rows, progress=False).weights

        plain = fitted()
        im.autolog()
        logged = fitted()
        assert len(runs(user)) == 1
        assert plain.keys() == logged.keys()
        assert all(torch.equal(plain[name], logged[name]) for name in plain)

    def test_a_failing_fit_is_not_logged(self, user: Store) -> None:
        im.autolog()
        with pytest.raises(InputError):
            PCAConcepts(n_concepts=4).fit(torch.full((10, 5), torch.nan))
        assert not runs(user)

    def test_explanations_and_dictionary_share_a_run(
        self, user: Store, model: TextModel, texts: list[str], rows: torch.Tensor
    ) -> None:
        im.autolog()
        with mlflow.start_run():
            Occlusion(model)(texts)
            activations = ModelWithSplitPoints(model, [1]).get_activations(texts, progress=False)[1]
            PCAConcepts(n_concepts=2).fit(activations)
        assert kinds(user) == ["attributions,concepts"]


class TestSwitch:
    def test_off_is_off_and_on_twice_is_on_once(self, user: Store, model: TextModel, texts: list[str]) -> None:
        explainer = Occlusion(model)
        explainer(texts)
        assert not runs(user)
        im.autolog()
        im.autolog()
        explainer(texts)
        assert len(runs(user)) == 1
        im.autolog(disable=True)
        explainer(texts)
        im.autolog(disable=True)
        explainer(texts)
        assert len(runs(user)) == 1

    def test_each_kind_has_its_switch(
        self, user: Store, model: TextModel, texts: list[str], rows: torch.Tensor
    ) -> None:
        im.autolog(log_attributions=False)
        Occlusion(model)(texts)
        PCAConcepts(n_concepts=2).fit(rows)
        assert kinds(user) == ["concepts"]
        im.autolog(log_dictionaries=False)
        Occlusion(model)(texts)
        PCAConcepts(n_concepts=2).fit(rows)
        assert kinds(user) == ["attributions", "concepts"]

    @pytest.mark.parametrize("draw", [False, True])
    def test_pictures_are_drawn_where_they_are_asked_for(
        self, user: Store, model: TextModel, texts: list[str], rows: torch.Tensor, draw: bool
    ) -> None:
        im.autolog(draw=draw)
        with mlflow.start_run() as active:
            Occlusion(model)(texts)
            TopKSAEConcepts(n_concepts=6, k=2).fit(rows, progress=False)
        folders = ("attributions", "concepts")
        files = [each.path for name in folders for each in user.client.list_artifacts(active.info.run_id, name)]
        assert {name for name in files if name.endswith(".png")} == (
            {"attributions/example.png", "concepts/training.png"} if draw else set()
        )
        assert "attributions/attributions.html" in files


class TestFailures:
    @pytest.fixture
    def broken(self, user: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """The artifacts cannot be written: a file stands where their folder would be made."""
        place = tmp_path / "no folder"
        place.write_text("")
        experiment = user.client.create_experiment("broken", artifact_location=place.as_uri())
        mlflow.set_experiment(experiment_id=experiment)

    def test_become_one_warning(self, broken: None, model: TextModel, texts: list[str], rows: torch.Tensor) -> None:
        im.autolog()
        plain = Occlusion(model)
        with pytest.warns(RuntimeWarning, match="not log the explanations by 'occlusion': .*disable=True") as told:
            explanations = plain(texts)
        assert len(told) == 1
        assert told[0].filename == __file__
        assert len(explanations) == len(texts)
        several = [PCAConcepts(n_concepts=2), PCAConcepts(n_concepts=3)]
        with pytest.warns(RuntimeWarning, match="could not log the dictionaries by 'pca', 'pca'") as told:
            fit_together(several, rows)
        assert len(told) == 1
        assert all(each.is_fitted for each in several)
        assert {each.info.status for each in mlflow.MlflowClient().search_runs(_every_experiment())} == {"FAILED"}

    def test_may_be_silent(self, broken: None, model: TextModel, texts: list[str]) -> None:
        im.autolog(silent=True)
        assert len(Occlusion(model)(texts)) == len(texts)

    def test_never_break_the_call_where_warnings_are_errors(
        self, broken: None, model: TextModel, texts: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        im.autolog()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert len(Occlusion(model)(texts)) == len(texts)
        assert "could not log the explanations" in caplog.text

    def test_of_a_server_that_is_not_there(self, user: Store, model: TextModel, texts: list[str]) -> None:
        mlflow.set_tracking_uri("http://me:secret@127.0.0.1:9")
        im.autolog()
        with pytest.warns(RuntimeWarning, match="could not log") as told:
            assert len(Occlusion(model)(texts)) == len(texts)
        assert "secret" not in str(told[0].message)


def _every_experiment() -> list[str]:
    return [each.experiment_id for each in mlflow.MlflowClient().search_experiments()]


class TestThreads:
    def test_each_call_is_logged_once(
        self, user: Store, texts: list[str], tiny_model: Callable[..., TextModel]
    ) -> None:
        im.autolog()
        models = [tiny_model(seed=seed) for seed in range(4)]
        with unobserved():
            expected = [Occlusion(model)(texts) for model in models]
        together = threading.Barrier(4)

        def explain(model: TextModel) -> AttributionSet:
            together.wait()
            return Occlusion(model)(texts)

        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(explain, models))
        assert found == expected
        assert kinds(user) == ["attributions"] * 4
        tags = {each.data.tags["interpreto.model.fingerprint"] for each in runs(user)}
        assert tags == {model.fingerprint for model in models}

    def test_the_run_of_a_project_is_taken_once(
        self, user: Store, texts: list[str], tiny_model: Callable[..., TextModel], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Threads have no active run, and all see the run that `mlflow run` opened for the process."""
        project = user.client.create_run(user.experiment_id)
        monkeypatch.setenv("MLFLOW_RUN_ID", project.info.run_id)
        im.autolog()
        models = [tiny_model(seed=seed) for seed in range(3)]
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda model: Occlusion(model)(texts[:2]), models))
        assert kinds(user) == ["attributions"] * 3
        assert user.client.get_run(project.info.run_id).data.params["method"] == "occlusion"


class TestObservers:
    def test_are_told_in_order_and_may_leave(self) -> None:
        told: list[str] = []
        observers: Observers[str] = Observers()
        observers.tell("nobody")
        first, second = (lambda event: told.append(f"1 {event}")), (lambda event: told.append(f"2 {event}"))
        observers.add(first)
        observers.add(second)
        observers.tell("a")
        observers.remove(first)
        observers.remove(first)
        observers.tell("b")
        assert told == ["1 a", "2 a", "2 b"]

    def test_hear_nothing_of_what_they_cause_themselves(self) -> None:
        observers: Observers[int] = Observers()
        told = []

        def again(event: int) -> None:
            told.append(event)
            observers.tell(event + 1)

        observers.add(again)
        observers.tell(0)
        observers.tell(5)
        assert told == [0, 5]

    def test_quiet_is_of_one_thread_and_ends_with_errors(self) -> None:
        observers: Observers[int] = Observers()
        told: list[int] = []
        observers.add(told.append)
        with unobserved():
            observers.tell(1)
            other = threading.Thread(target=observers.tell, args=(2,))
            other.start()
            other.join()
        with pytest.raises(KeyError), unobserved():
            raise KeyError
        observers.tell(3)
        assert told == [2, 3]


@pytest.mark.slow
def test_the_benchmark_times_logging_and_leaves_it_off() -> None:
    shape = Shape(layers=1, width=64, vocabulary=105)
    before = mlflow.get_tracking_uri()
    records = measure_autolog(texts=2, rows=1200, rounds=1, shape=shape)
    assert [record.what.split(",")[0] for record in records] == ["saliency", "occlusion", "kernel_shap", "topk_sae"]
    for record in records:
        assert 0 < record.logging < record.with_it
        assert record.share == record.logging / record.without
    assert mlflow.get_tracking_uri() == before
