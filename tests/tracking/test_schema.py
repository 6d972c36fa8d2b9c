from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.store import Store

HOSTILE = (
    "",
    "..",
    "/",
    "a/../b",
    'modèle: <b>été</b> "x" \'%',
    "x" * 900,
    "日本語",
    "a\nb\t",
    "-- ;DROP",
    "😀.…",
    "a//b/",
    "{{7*7}}",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_mlflow_takes_whatever_names_are_made_of(text: str, store: Store) -> None:
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,120}", schema.slugify(text))
    model = store.client.create_logged_model(store.experiment_id, schema.slugify(text))
    assert model.name == schema.slugify(text)
    name = schema.registered_name(text, text, text)
    store.client.create_registered_model(name)
    assert store.client.get_registered_model(name).name == name
    run_id = store.client.create_run(store.experiment_id).info.run_id
    key = schema.key(f"faithfulness/{text}")
    store.client.log_metric(run_id, key, 1.0)
    store.client.log_param(run_id, key, "x")
    assert store.client.get_run(run_id).data.metrics == {key: 1.0}


def test_names_that_are_fine_stay_as_they_are() -> None:
    assert (
        schema.registered_name("library-docs", "bert.encoder.layer.3", "topk_sae")
        == "library-docs.bert-encoder-layer-3.topk_sae"
    )
    assert schema.key("faithfulness/deletion_auc") == "faithfulness/deletion_auc"
    assert schema.metric_key("deletion") == "faithfulness/deletion"
    assert schema.metric_key("plausibility/auprc") == "plausibility/auprc"
    assert schema.explain_key("reconstruction/r2") == "explain/r2"


def test_a_cell_is_what_it_says_not_how_it_is_ordered() -> None:
    first = schema.cell_hash({"method": "occlusion", "seed": 0, "data": {"name": "x", "rows": [1, 2]}})
    assert first == schema.cell_hash({"data": {"rows": [1, 2], "name": "x"}, "seed": 0, "method": "occlusion"})
    assert re.fullmatch("[0-9a-f]{32}", first)
    others: list[dict[str, Any]] = [
        {"method": "occlusion", "seed": 1, "data": {"name": "x", "rows": [1, 2]}},
        {"method": "occlusion", "seed": 0, "data": {"name": "x", "rows": [2, 1]}},
        {"method": "occlusion", "seed": "0", "data": {"name": "x", "rows": [1, 2]}},
    ]
    assert len({first, *map(schema.cell_hash, others)}) == 4
    with pytest.raises(InputError, match="plain JSON"):
        schema.cell_hash({"method": object()})


def test_parameters_of_the_method_are_under_its_own_prefix() -> None:
    found = schema.params(
        {"model": "m", "method": "kernel_shap", "layer": None},
        {"n_perturbations": 1000, "seed": 0, "granularity": "word", "targets": [1, "b"], "exact": True, "none": None},
    )
    assert found == {
        "model": "m",
        "method": "kernel_shap",
        "seed": "0",
        "granularity": "word",
        "method.n_perturbations": "1000",
        "method.targets": '[1, "b"]',
        "method.exact": "True",
    }
    with pytest.raises(UnknownNameError, match="unknown run parameter 'lr'; known: 'model'"):
        schema.params({"lr": 1})
    with pytest.raises(UnknownNameError, match="unknown kind of run 'lime'"):
        schema.check_kind("lime")


def test_long_parameters_are_cut_where_everybody_sees_it(store: Store) -> None:
    text = schema.param_text(["ü" * 9000])
    assert len(text) == 6000
    assert text.endswith(f"… (cut from {len(str(['ü' * 9000]))} characters)")
    run_id = store.client.create_run(store.experiment_id).info.run_id
    store.client.log_param(run_id, "long", text)
    assert store.client.get_run(run_id).data.params["long"] == text


def test_costs_take_what_the_schema_knows() -> None:
    counters = {
        "evaluations_asked": 10.0,
        "evaluations_run": 8.0,
        "batches": 2.0,
        "tokens": 64.0,
        "padding": 1.0,
        "seconds": 0.5,
    }
    assert schema.costs(counters, 2.0) == {
        "cost/seconds": 2.0,
        "cost/evaluations_asked": 10.0,
        "cost/evaluations_run": 8.0,
        "cost/tokens": 64.0,
        "cost/padding": 1.0,
    }


@dataclass
class Named:
    text: str

    def __str__(self) -> str:
        return self.text


def test_markdown_shows_text_as_it_is() -> None:
    hostile = Named("a|b\n# <img src=x onerror=alert(1)> [x](javascript:y) `c` *d* & \\")
    escaped = schema.markdown(hostile)
    assert "\n" not in escaped
    assert re.sub(r"\\(.)", r"\1", escaped) == str(hostile).replace("\n", " ")
    assert not re.search(r"(?<!\\)[<>|`*\[\]&#]", escaped)


def test_parts_of_a_run_have_places_of_their_own() -> None:
    assert schema.metric_of_part("curve/deletion", None) == "curve/deletion"
    assert schema.metric_of_part("curve/deletion", "kernel_shap") == "kernel_shap/curve/deletion"
    assert schema.artifact_of_part("attributions/a.html", None) == "attributions/a.html"
    assert schema.artifact_of_part("attributions/a.html", "lime") == "attributions/lime/a.html"
    assert schema.artifact_of_part("attributions/", "lime") == "attributions/lime/"
    assert schema.artifact_of_part("attributions/a.html", "../x") == "attributions/x/a.html"
    assert schema.artifact_of_part("recipe.yaml", "lime") == "recipe.yaml"
