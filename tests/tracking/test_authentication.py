"""A server with basic authentication: a user who may only read the model that they explain, and nobody at all."""

from __future__ import annotations

import logging
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import requests
from mlflow import MlflowClient

import interpreto_mlops as im
from interpreto_mlops.attributions import Saliency
from interpreto_mlops.attributions.metrics import Deletion
from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts, top_words
from interpreto_mlops.errors import TrackingError
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.tracking import log_text_model, register_dictionary, run, write_attributions, write_dictionary
from interpreto_mlops.tracking.lineage import lineage
from interpreto_mlops.tracking.resolving import fetched, resolve
from interpreto_mlops.tracking.store import Store, connect
from interpreto_mlops.tracking.verification import verify_evidence
from interpreto_mlops.workflows.execute import execute
from interpreto_mlops.workflows.recipes import parse_recipe
from tests.conftest import TEXTS, build, word_tokenizer
from tests.mlflow_stores import serving

pytestmark = pytest.mark.slow

CHAMPION = "models:/reviews@champion"
DATA = TextDataset("reviews", TEXTS)
# Seconds that a busy machine may take to check a password.
_PATIENCE = 60.0


@dataclass(frozen=True)
class Guarded:
    """A server that asks who is there.

    Arguments:
        address: without credentials.
        passwords: of the users `alice`, who owns the registered model `reviews`, and `bob`, who may read it.
        model_id: of the logged model behind `reviews`.
        run_id: of a run of alice's.
    """

    address: str
    passwords: dict[str, str]
    model_id: str = ""
    run_id: str = ""

    def signed(self, user: str) -> str:
        """The address with a user's credentials in it."""
        return self.address.replace("://", f"://{user}:{self.passwords[user]}@")


def sign_in(patch: pytest.MonkeyPatch, guarded: Guarded, user: str) -> None:
    patch.setenv("MLFLOW_TRACKING_USERNAME", user)
    patch.setenv("MLFLOW_TRACKING_PASSWORD", guarded.passwords[user])


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, migrated: Path) -> Iterator[Guarded]:
    pytest.importorskip(
        "flask_wtf", reason="MLflow's basic authentication is not installed: pip install 'mlflow[auth]'"
    )
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copy(migrated, folder / "mlflow.db")
    settings = {"default_permission": "READ", "database_uri": f"sqlite:///{folder}/users.db", "admin_username": "admin"}
    # A password is compared by a hash that takes a while; not at each request.
    settings["auth_cache_ttl_seconds"] = "600"
    settings["authorization_function"] = "mlflow.server.auth:authenticate_request_basic_auth"
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (folder / "auth.ini").write_text("\n".join(["[mlflow]", *lines, ""]))
    # MLflow asks for twelve characters or more.
    passwords = {name: f"secret-{secrets.token_hex(8)}" for name in ("admin", "alice", "bob")}
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": passwords["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
    }
    with (
        serving(
            f"sqlite:///{folder}/mlflow.db", folder, "--app-name", "basic-auth", environment=environment
        ) as address,
        pytest.MonkeyPatch.context() as patch,
    ):
        yield _with_a_model(Guarded(address, passwords), patch)


def _with_a_model(guarded: Guarded, patch: pytest.MonkeyPatch) -> Guarded:
    """Alice's registered model, and a run of hers."""
    # MLflow's own client of these needs the whole server in this process.
    create = f"{guarded.address}/api/2.0/mlflow/users/create"
    for name in ("alice", "bob"):
        user = {"username": name, "password": guarded.passwords[name]}
        requests.post(create, json=user, auth=("admin", guarded.passwords["admin"]), timeout=30).raise_for_status()
    sign_in(patch, guarded, "alice")
    store = connect(guarded.address, "of alice", timeout=_PATIENCE)
    model = TextModel(build("bert"), word_tokenizer(), name="tiny")
    with run(store, kind=None, name="train") as log:
        logged = log_text_model(store, log, model, name="reviews", registered_model_name="reviews")
    store.client.set_registered_model_alias("reviews", "champion", 1)
    patch.undo()
    return replace(guarded, model_id=logged.model_id, run_id=log.run_id)


@pytest.fixture(params=["environment", "address"])
def bob(request: pytest.FixtureRequest, guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store as bob opens it, who signs in by variables or in the address."""
    if request.param == "address":
        return connect(guarded.signed("bob"), "of bob", timeout=_PATIENCE)
    sign_in(monkeypatch, guarded, "bob")
    return connect(guarded.address, "of bob", timeout=_PATIENCE)


@pytest.fixture
def bob_by_variables(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> Store:
    sign_in(monkeypatch, guarded, "bob")
    return connect(guarded.address, "of bob", timeout=_PATIENCE)


def test_attributions_name_the_model_by_tags(bob: Store, guarded: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    model = im.load_model(CHAMPION, store=bob)
    assert model.model_id == guarded.model_id
    explanations = Saliency(model)(TEXTS)
    scores = [Deletion(model, n_random=2)(explanations)]
    with caplog.at_level(logging.INFO, "interpreto_mlops"), run(bob, kind="attributions", name="saliency") as log:
        write_attributions(log, explanations, metrics=scores, model=model, dataset=DATA)
        assert not log.input_model(guarded.model_id)
        assert not log.explained({"deletion": 0.5}, guarded.model_id)
    assert "the run's tags name the model instead" in caplog.text
    found = bob.client.get_run(log.run_id)
    assert found.info.status == "FINISHED"
    assert found.inputs.model_inputs == []
    assert [each.dataset.name for each in found.inputs.dataset_inputs] == ["reviews"]
    assert found.data.tags["interpreto.model.id"] == guarded.model_id
    assert found.data.tags["interpreto.model.uri"] == "models:/reviews/1"
    assert found.data.metrics["faithfulness/deletion"] == pytest.approx(scores[0].mean)
    assert not bob.client.get_logged_model(guarded.model_id).metrics
    down = lineage(bob, CHAMPION)
    assert f"runs:/{log.run_id}" in {child.uri for child in down.children if child.relation == "explained by"}
    assert verify_evidence(bob, f"runs:/{log.run_id}").verdict == "intact"


def test_a_dictionary_is_learned_registered_and_loaded(bob_by_variables: Store, guarded: Guarded) -> None:
    bob = bob_by_variables
    model = im.load_model(CHAMPION, store=bob)
    activations = ModelWithSplitPoints(model, [1]).get_activations(DATA, progress=False)[1]
    dictionary = PCAConcepts(n_concepts=3).fit(activations)
    dictionary.descriptions = top_words(dictionary, activations)
    with run(bob, kind="concepts", name="pca") as log:
        logged = write_dictionary(log, dictionary, metrics={"reconstruction/r2": 0.5})
    register_dictionary(bob, logged, dictionary, name="bobs")
    bob.client.set_registered_model_alias("bobs", "champion", 1)
    assert im.load_dictionary("models:/bobs@champion", store=bob).n_concepts == 3
    assert verify_evidence(bob, "models:/bobs/1").verdict == "intact"
    assert {each.key for each in bob.client.get_logged_model(logged.model_id).metrics} == {"reconstruction/r2"}
    assert bob.client.get_run(log.run_id).inputs.model_inputs == []
    (based,) = (child for child in lineage(bob, "models:/bobs/1").children if child.relation == "learned from")
    assert based.uri == "models:/reviews/1"


@pytest.mark.parametrize("kind", ["attribute", "concepts"])
def test_whole_jobs_finish_and_hold_no_credentials(
    bob: Store, guarded: Guarded, kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: Any
) -> None:
    pd.DataFrame({"text": TEXTS * 3}).to_csv(tmp_path / "data.csv", index=False)
    own: dict[str, Any] = {"methods": ["saliency"], "metrics": ["deletion"], "n_random": 2}
    if kind == "concepts":
        own = {"layers": [0], "methods": ["pca"], "n_concepts": [3], "seeds": 1}
    where = {"tracking_uri": bob.tracking_uri, "experiment": "of bob", "data": str(tmp_path / "data.csv")}
    recipe = parse_recipe({**where, **own, "kind": kind, "model": CHAMPION, "text_column": "text"})
    with caplog.at_level(logging.DEBUG):
        outcome = execute(recipe, command=f"interpreto-mlops {kind} --tracking-uri {bob.tracking_uri}")
    cells = [cell.run_id for cell in (*outcome.attributions, *outcome.concepts)]
    assert len(cells) == 1
    told = capfd.readouterr()
    own_log = "\n".join(each.getMessage() for each in caplog.records if each.name.startswith("interpreto_mlops"))
    for text in (told.out, told.err, own_log, repr(outcome.store)):
        assert guarded.passwords["bob"] not in text
    for run_id in (*cells, outcome.report_run_id):
        found = bob.client.get_run(run_id)
        assert found.info.status == "FINISHED"
        assert guarded.passwords["bob"] not in str(found.to_dictionary())
        _check_files(bob.client.download_artifacts(run_id, "", str(tmp_path)), guarded.passwords["bob"])
    for cell in outcome.concepts:
        assert cell.registered is not None
        version = bob.client.get_model_version(*cell.registered)
        model = bob.client.get_logged_model(version.source.removeprefix("models:/"))
        assert guarded.passwords["bob"] not in str((version.tags, version.description, model.tags, model.params))
        with fetched(bob, resolve(bob, version.source)) as folder:
            _check_files(str(folder), guarded.passwords["bob"])


def _check_files(folder: str, password: str) -> None:
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert len(files) > 3
    assert not [path for path in files if password.encode() in path.read_bytes()]


def test_autologging_goes_on_without_a_warning(bob_by_variables: Store, guarded: Guarded) -> None:
    mlflow.set_tracking_uri(guarded.address)
    mlflow.set_experiment("of bob")
    model = im.load_model(CHAMPION)
    im.autolog()
    try:
        with warnings.catch_warnings(), mlflow.start_run() as active:
            warnings.simplefilter("error")
            Saliency(model)(TEXTS)
    finally:
        im.autolog(disable=True)
    found = mlflow.get_run(active.info.run_id)
    assert found.data.tags["interpreto.model.id"] == guarded.model_id


@pytest.mark.parametrize(
    ("action", "write"),
    [
        (
            "log tags, parameters and metrics|set tags",
            lambda store, guarded, explained: im.log_attributions(explained, run_id=guarded.run_id),
        ),
        (
            "move the alias|set the alias|alias",
            lambda store, guarded, explained: _move(store),
        ),
        (
            "register the model 'reviews'",
            lambda store, guarded, explained: log_text_model(
                store, None, TextModel(build("bert", 1), word_tokenizer()), name="x", registered_model_name="reviews"
            ),
        ),
    ],
    ids=["run", "alias", "version"],
)
def test_what_bob_may_not_do_is_one_sentence(
    bob: Store,
    guarded: Guarded,
    tiny_model: Callable[..., TextModel],
    action: str,
    write: Callable[[Store, Guarded, Any], object],
) -> None:
    mlflow.set_tracking_uri(bob.tracking_uri)
    mlflow.set_experiment("of bob")
    explained = Saliency(tiny_model())(TEXTS[:1])
    with pytest.raises(TrackingError, match=rf"could not ({action}).*: .*[Pp]ermission denied") as refused:
        write(bob, guarded, explained)
    assert "\n" not in str(refused.value)
    assert guarded.passwords["bob"] not in _whole(refused.value)


def _move(store: Store) -> None:
    with Catalogue.connect("sqlite:///catalogue.db") as catalogue:
        catalogue.move_alias(store, "reviews", "champion", 1)


def _whole(error: BaseException) -> str:
    """The error as a traceback shows it."""
    import traceback

    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize("who", ["nobody", "a wrong password", "a wrong password in the address"])
def test_who_is_not_known_is_told_so_in_one_sentence(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    address = guarded.address
    if who == "a wrong password":
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong-and-secret")
    elif who == "a wrong password in the address":
        address = address.replace("://", "://bob:wrong-and-secret@")
    for open_store in (lambda: connect(address, "x", timeout=_PATIENCE), lambda: _current(address)):
        with pytest.raises(
            TrackingError, match=r"cannot use the MLflow server at 'http.*': it wants credentials"
        ) as told:
            open_store()
        assert "\n" not in str(told.value)
        assert "wrong-and-secret" not in _whole(told.value)


def _current(address: str) -> Any:
    from interpreto_mlops.tracking.store import current_store

    mlflow.set_tracking_uri(address)
    return current_store()


def test_the_permissions_are_those_of_the_test(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this, a server that lets everybody do everything would pass, too."""
    sign_in(monkeypatch, guarded, "bob")
    client = MlflowClient(guarded.address)
    assert client.get_logged_model(guarded.model_id).model_id == guarded.model_id
    with pytest.raises(mlflow.exceptions.MlflowException, match="Permission denied"):
        client.set_logged_model_tags(guarded.model_id, {"mine": "yes"})
