"""How many requests one more cell costs of an MLflow server, counted between the two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from interpreto_mlops.tracking.store import connect
from interpreto_mlops.tracking.text_models import log_text_model
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import parse_recipe
from tests.counting_proxy import Proxy, Request, counting_proxy

pytestmark = pytest.mark.slow
MOST = 25

Job = Callable[..., list[Request]]


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    with counting_proxy(server) as found:
        yield found


@pytest.fixture
def job(server, proxy, tiny_model, data_file) -> Job:
    """A function that carries out a recipe through the proxy and returns the requests."""
    store = connect(server, "counted")
    logged = log_text_model(store, None, tiny_model(), name="reviews", registered_model_name="counted")
    common = {"model": logged.uri, "tracking_uri": proxy.address, "experiment": "counted", "command": "…"}
    common |= {"data": str(data_file), "text_column": "review", "max_texts": 20}

    def carry_out(**values: Any) -> list[Request]:
        given = {**common, **values}
        command = given.pop("command")
        with proxy.counting() as found:
            execute(parse_recipe(given), command=command)
        return found

    return carry_out


def more(few: list[Request], many: list[Request]) -> Counter[str]:
    """How many requests more there are, with and without the files."""
    files = [sum(request.is_artifact for request in each) for each in (few, many)]
    return Counter({"all": len(many) - len(few), "files": files[1] - files[0]})


def test_a_cell_of_attributions(job: Job) -> None:
    scored = {"metrics": ["deletion", "insertion", "comprehensiveness", "sufficiency"], "n_random": 2}
    few, many = (
        job(kind="attribute", methods=methods, **scored) for methods in (["saliency"], ["saliency", "occlusion"])
    )
    cost = more(few, many)
    print(f"\nrequests for a cell of attributions: {cost['all']}, of them {cost['files']} files")
    # All that a page of results needs is there.
    assert cost["files"] >= 10
    assert cost["all"] <= MOST


def test_a_cell_of_concepts(job: Job) -> None:
    """A dictionary is a model of eleven files: they alone, and what the run shows, are nearly as many as the bound."""
    given = {"kind": "concepts", "layers": [0], "n_concepts": [3], "seeds": 1, "register_best": False}
    few = job(methods=["pca"], **given)
    many = job(methods=["pca", "topk_sae"], options={"topk_sae": {"k": 2}}, **given)
    cost = more(few, many)
    print(f"\nrequests for a cell of concepts: {cost['all']}, of them {cost['files']} files")
    assert cost["files"] >= 18
    assert cost["all"] - cost["files"] <= MOST - 5
    training = [each for each in many if each.path.endswith("/log-batch") and b"train/" in each.body]
    # Its whole training in one request, and a look or two at it while it went on.
    assert 1 <= len(training) <= 4


def test_registering_costs_little(job: Job) -> None:
    given = {"kind": "concepts", "layers": [0], "n_concepts": [3], "seeds": 1, "methods": ["pca"]}
    cost = more(job(**given, register_best=False), job(**given))
    assert 1 <= cost["all"] <= 8
    assert cost["files"] == 0
