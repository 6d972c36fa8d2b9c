"""MLflow's AI gateway in front of a scripted provider: a real MLflow server between the client and the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import GatewayEndpointModelConfig, GatewayModelLinkageType

from interpreto_mlops.errors import TransientError, UnusableModelError
from interpreto_mlops.llm import Answer, OpenAIModel, Prompt, Questioner
from tests.llm.scripted_server import Reply, Request, ScriptedServer, failure

pytestmark = pytest.mark.slow

PROVIDER_KEY = "sk-provider-0123456789abcdef"


def script(request: Request) -> Any:
    return failure(503, "busy") if request.user == "busy" else Reply(f"answer to {request.user}")


@pytest.fixture
def gateway(server: str, scripted_server: Callable[..., ScriptedServer]) -> tuple[str, ScriptedServer]:
    """The name of an endpoint of the gateway, and the provider behind it."""
    provider = scripted_server(script)
    store: Any = MlflowClient(server)._tracking_client.store
    name = f"labels-{provider.port}"
    secret = store.create_gateway_secret(
        secret_name=name,
        secret_value={"api_key": PROVIDER_KEY},
        provider="openai",
        auth_config={"api_base": provider.base_url},
    )
    model = store.create_gateway_model_definition(
        name=name, secret_id=secret.secret_id, provider="openai", model_name="small"
    )
    config = GatewayEndpointModelConfig(model.model_definition_id, GatewayModelLinkageType.PRIMARY)
    store.create_gateway_endpoint(name=name, model_configs=[config])
    return name, provider


def test_questions_go_through(gateway: tuple[str, ScriptedServer], server: str) -> None:
    name, provider = gateway
    model = OpenAIModel(name, base_url=f"{server}/gateway/mlflow/v1", key_variable=None)
    asking = Questioner(model, retries=0)
    found = asking.ask([Prompt("the protocol", user, max_tokens=9) for user in ("soup", "stew", "busy")])
    assert found[:2] == [Answer("answer to soup", 10, 5), Answer("answer to stew", 10, 5)]
    assert isinstance(found[2], TransientError)
    assert {request.headers["authorization"] for request in provider.requests} == {f"Bearer {PROVIDER_KEY}"}
    assert {(request.system, request.body["max_tokens"]) for request in provider.requests} == {("the protocol", 9)}


def test_an_unknown_endpoint(server: str) -> None:
    model = OpenAIModel("nothing", base_url=f"{server}/gateway/mlflow/v1", key_variable=None)
    with pytest.raises(UnusableModelError, match="nothing"):
        model.answer(Prompt("s", "u"))
