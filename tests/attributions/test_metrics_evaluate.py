"""Many metrics in one pass: the same results as one by one, for fewer evaluations; and results that survive a file."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from interpreto_mlops.attributions import AttributionSet, IntegratedGradients, KernelShap, Occlusion
from interpreto_mlops.attributions.metrics import (
    METRICS,
    Deletion,
    Insertion,
    MetricResult,
    MetricSet,
    Sufficiency,
    evaluate,
)
from interpreto_mlops.errors import DataError, InputError, UnknownNameError
from interpreto_mlops.models import engine
from interpreto_mlops.models.coalition_table import CoalitionTable
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer

RANKINGS = ["aopc", "comprehensiveness", "deletion", "insertion", "insertion_minus_deletion", "sufficiency"]


def test_all_together_equal_one_by_one(tiny_model, texts):
    model = tiny_model()
    explanations = Occlusion(model)(texts)
    together = evaluate(explanations, model)
    plain = [name for name, metric in METRICS.items() if not metric.needs and not metric.costly]
    assert list(together) == plain
    alone = 0.0
    for name in plain:
        single = METRICS.get(name)(model)(explanations)
        np.testing.assert_allclose(together[name].values, single.values, atol=1e-6)
        np.testing.assert_allclose(together[name].random_draws, single.random_draws, atol=1e-6)
        np.testing.assert_allclose(together[name].random_values, single.random_values, atol=1e-6)
        assert together[name].parameters == single.parameters
        alone += single.counters["evaluations_run"]
    assert together.counters["evaluations_run"] < 0.7 * alone


def test_the_metrics_of_rankings_cost_what_deletion_and_insertion_cost(tiny_model, texts):
    model = tiny_model()
    explanations = Occlusion(model)(texts)
    curves = evaluate(explanations, model, ["insertion", "deletion"])
    every = evaluate(explanations, model, [*RANKINGS, "monotonicity"])
    assert every.counters["evaluations_run"] == curves.counters["evaluations_run"]


def test_sharing_does_not_depend_on_how_many_texts_there_are(tiny_model, monkeypatch):
    """More rows than the engine's table holds: metrics of a text run together, so nothing is lost between them."""
    monkeypatch.setattr(engine, "CoalitionTable", partial(CoalitionTable, most_bytes=400 * 424))
    model = tiny_model()
    words = "the food was great but service very slow and cold".split()
    texts = [" ".join(words[i:] + words[:i]) for i in range(10)]
    explanations = Occlusion(model)(texts)
    each = [evaluate(explanations[i : i + 1], model, RANKINGS).counters["evaluations_run"] for i in range(10)]
    assert sum(each) > 400
    # Not quite equal perhaps: texts of one length are the same when every word is replaced.
    assert sum(each) - 10 < evaluate(explanations, model, RANKINGS).counters["evaluations_run"] <= sum(each)


def test_what_methods_have_evaluated_is_not_run_again(tiny_model):
    model = tiny_model()
    with model.engine.shared_table():
        explanations = KernelShap(model)(["awful soup , not good"])  # every coalition
        assert evaluate(explanations, model, RANKINGS).counters["evaluations_run"] == 0


def test_names_instances_and_options_mix(tiny_model, texts):
    model = tiny_model()
    explainer = IntegratedGradients(model, n_nodes=4)
    explanations = explainer(texts)
    own = Sufficiency(model, bins=(0.5,), n_random=3)
    rationales = [[(0, 3)]] * len(texts)
    results = evaluate(
        explanations,
        model,
        ["deletion", own, "max_sensitivity", "plausibility", "sanity_check"],
        explainer=explainer,
        rationales=rationales,
        n_random=5,
        max_fraction=0.5,
    )
    assert list(results) == [
        "deletion",
        "sufficiency",
        "max_sensitivity",
        "plausibility/auprc",
        "plausibility/token_f1",
        "plausibility/iou_f1",
        "plausibility/iou_f1_micro",
        "sanity_check",
    ]
    assert results["sufficiency"].parameters["bins"] == (0.5,)
    assert len(results["sufficiency"].random_draws) == 3
    assert {len(result.random_draws) for name, result in results.items() if name != "sufficiency"} == {5}
    assert results["deletion"].parameters["max_fraction"] == 0.5
    run = sum(results[name].counters["evaluations_run"] for name in ("deletion", "max_sensitivity", "sanity_check"))
    assert results.counters["evaluations_run"] == run


def test_all_takes_in_what_there_is_for_it(tiny_model, texts):
    model = tiny_model()
    explainer = IntegratedGradients(model, n_nodes=4)
    explanations = explainer(texts[:2])
    results = evaluate(explanations, model, explainer=explainer, rationales=[None, [(0, 5)]], n_random=2, n_draws=2)
    assert "max_sensitivity" in results
    assert "plausibility/auprc" in results
    assert "sanity_check" not in results


def test_nonsense_is_refused(tiny_model, texts):
    model = tiny_model()
    explanations = Occlusion(model)(texts)
    with pytest.raises(UnknownNameError, match="unknown attribution metric 'deletions'; known: 'aopc'"):
        evaluate(explanations, model, ["deletions"])
    with pytest.raises(UnknownNameError, match="unknown option of metrics 'randoms'"):
        evaluate(explanations, model, randoms=3)
    with pytest.raises(InputError, match="'max_sensitivity' needs explainer=, the attribution method"):
        evaluate(explanations, model, "max_sensitivity")
    with pytest.raises(InputError, match="'plausibility' needs rationales=, one rationale for each text"):
        evaluate(explanations, model, ["plausibility"])
    with pytest.raises(InputError, match="'deletion' was made for another model"):
        evaluate(explanations, model, [Deletion(tiny_model())])
    with pytest.raises(InputError, match="registry names or metrics, not 3"):
        evaluate(explanations, model, [3])


def test_no_text_and_no_metric(tiny_model):
    model = tiny_model()
    results = evaluate(AttributionSet([]), model)
    assert all(np.isnan(result.mean) for result in results.values())
    assert len(evaluate(AttributionSet([]), model, [])) == 0


def test_methods_beat_random_rankings_on_a_real_model(cebab_model, cebab_reviews):
    texts = cebab_reviews["text"].tolist()[:12]
    results = evaluate(KernelShap(cebab_model, n_perturbations=200)(texts), cebab_model, n_random=10)
    # Monotonicity is left out: what speaks against the class comes first, and makes the probability fall.
    for result in (result for name, result in results.items() if name != "monotonicity"):
        assert result.gain > 0, result
        assert result.z > 1.5, result
        assert result.diagnosticity > 0.75, result
        low, high = result.interval()
        assert low < result.mean < high


@pytest.fixture
def results(tiny_model, texts) -> MetricSet:
    model = tiny_model()
    with pytest.warns(UserWarning, match="nothing to attribute"):
        explanations = Occlusion(model)([*texts, ""], targets=0)
    return evaluate(explanations, model, rationales=[[(0, 3)]] * 3 + [None] * 3, n_random=6)


def test_save_and_load_give_the_same_set(results, tmp_path):
    path = results.save(tmp_path / "deep" / "metrics.json")
    again = MetricSet.load(path)
    assert dict(again) == dict(results)
    assert again.counters == results.counters
    assert again.save(tmp_path / "again.json").read_bytes() == path.read_bytes()
    assert again.to_frame().equals(results.to_frame())
    for name, result in results.items():
        assert again[name].interval() == result.interval()
        assert repr(again[name]) == repr(result)
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_what_is_no_set_is_refused(tmp_path):
    with pytest.raises(DataError, match="there is no set of metrics in"):
        MetricSet.load(tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text('{"format": "x"}')
    with pytest.raises(DataError, match="has the format 'x', not 'metric-set/1'"):
        MetricSet.load(tmp_path / "other.json")


def test_frames_hold_what_the_results_say(results):
    frame = results.to_frame().set_index("metric")
    for name, result in results.items():
        assert frame.loc[name, "mean"] == pytest.approx(result.mean, nan_ok=True)
        assert frame.loc[name, "skipped"] == result.n_skipped
        rows = result.to_frame()
        assert len(rows) == 6
        np.testing.assert_array_equal(rows["value"], result.values)
    with pytest.raises(UnknownNameError, match="unknown metric of this set 'x'"):
        results["x"]


def given(values, draws, **changes) -> MetricResult:
    values = np.asarray(values, dtype=float)
    same = {"random_values": np.full(len(values), np.mean(draws)), "better_than_random": np.ones(len(values))}
    return MetricResult("m", "a", values, **{**same, "higher_is_better": True, **changes}, random_draws=np.array(draws))


def test_z_counts_standard_deviations_of_the_random_draws():
    """Mean 4; draws 1, 2, 3 have mean 2 and standard deviation 1."""
    assert given([3, 5, np.nan], [1.0, 2.0, 3.0]).z == pytest.approx(2)
    assert given([3, 5], [1.0, 2.0, 3.0], higher_is_better=False).z == pytest.approx(-2)
    assert np.isnan(given([3, 5], [2.0, 2.0]).z)


def test_the_interval_covers_the_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = given(rng.normal(size=40), [0.0, 1.0]).interval()
        inside += low <= 0 <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_insertion_and_deletion_of_one_ranking_differ_by_their_difference(tiny_model, texts):
    model = tiny_model()
    results = evaluate(Occlusion(model)(texts), model, ["insertion", "deletion", "insertion_minus_deletion"])
    difference = results["insertion"].values - results["deletion"].values
    np.testing.assert_allclose(results["insertion_minus_deletion"].values, difference, atol=1e-12)
    assert Insertion.higher_is_better
    assert not Deletion.higher_is_better


def test_all_leaves_out_what_cannot_judge_the_explainer(tiny_model, texts):
    model = tiny_model()
    explainer = Occlusion(model)
    explanations = explainer(texts)
    assert list(evaluate(explanations, model, explainer=explainer)) == list(evaluate(explanations, model))
    with pytest.raises(InputError, match="gradients"):
        evaluate(explanations, model, ["max_sensitivity"], explainer=explainer)


def test_a_joint_metric_of_one_target_is_the_metric_of_that_target_also_below_zero():
    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    network = BertForSequenceClassification(BertConfig(**size, intermediate_size=48, num_labels=1))
    with torch.no_grad():
        network.classifier.bias.fill_(-3.0)
    model = TextModel(network.eval(), word_tokenizer())
    explanations = Occlusion(model)(["the food was great", "awful soup"])
    plain, joint = (evaluate(explanations, model, ["deletion"], joint=each)["deletion"] for each in (False, True))
    assert plain.mean < -2
    np.testing.assert_allclose(joint.values, plain.values)
