"""The quickstart as a user runs it, and what a real browser shows of it in the MLflow UI."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient

from interpreto_mlops.llm import Prompt
from tests.llm.readers import answer_text, at_random
from tests.llm.scripted_server import Reply, Request
from tests.mlflow_stores import VARIABLES, free_port, wait_for
from tests.mlflow_ui import MODE, shows
from tests.workflows.test_meaning_jobs import namer
from tests.workflows.writer import save_writer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Done:
    """A finished quickstart."""

    folder: Path
    output: str
    uri: str

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri, registry_uri=self.uri)

    def runs(self, kind: str | None) -> list:
        experiment = self.client.get_experiment_by_name("interpreto-quickstart")
        runs = self.client.search_runs([experiment.experiment_id])
        return [run for run in runs if run.data.tags.get("interpreto.kind") == kind]


def environment() -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name not in VARIABLES}, "PYTHONPATH": str(ROOT)}


def run_quickstart(folder: Path) -> str:
    command = [sys.executable, "-m", "interpreto_mlops", "quickstart"]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "%|" not in done.stdout + done.stderr, "a progress bar where there is no terminal"
    return done.stdout


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("quickstart")
    output = run_quickstart(folder)
    return Done(folder, output, f"sqlite:///{folder}/interpreto-quickstart/mlflow.db")


def test_the_classifier_is_better_than_four_in_five(quickstart):
    accuracy = float(re.search(r"held-out accuracy ([\d.]+)", quickstart.output)[1])
    assert accuracy > 0.8
    assert quickstart.client.get_model_version("library-docs", "1").status == "READY"


def test_it_prints_results_registrations_times_and_the_command_of_the_ui(quickstart):
    for words in ("occlusion", "integrated_gradients", "kernel_shap", "topk_sae", "library-docs.bert-encoder-layer-1."):
        assert words in quickstart.output
    assert re.search(r"mlflow server --backend-store-uri sqlite:", quickstart.output)
    times = quickstart.output.strip().splitlines()[-1]
    assert all(f"{stage} " in times for stage in ("corpus", "classifier", "attributions", "dictionaries", "total"))


def test_every_method_beats_random_rankings(quickstart):
    cells = quickstart.runs("attributions")
    assert len(cells) == 3
    for cell in cells:
        metrics = cell.data.metrics
        for name, sign in (("insertion", 1), ("deletion", -1), ("comprehensiveness", 1), ("sufficiency", -1)):
            assert sign * (metrics[f"faithfulness/{name}"] - metrics[f"faithfulness/{name}_random"]) > 0


def test_runs_are_flat_finished_and_of_one_suite(quickstart):
    cells = quickstart.runs("attributions") + quickstart.runs("concepts") + quickstart.runs("report")
    assert len(cells) == 3 + 8 + 1
    assert {run.info.status for run in cells} == {"FINISHED"}
    assert len({run.data.tags["interpreto.suite"] for run in cells}) == 1
    assert not any("mlflow.parentRunId" in run.data.tags for run in cells)


def test_dictionaries_are_good_and_the_best_of_each_layer_is_registered(quickstart):
    for run in quickstart.runs("concepts"):
        assert run.data.metrics["reconstruction/r2"] > 0.3
        assert run.data.metrics["complexity/dead"] < 0.2
        assert run.data.metrics["stability/stability"] > run.data.metrics["stability/stability_random"]
    names = [model.name for model in quickstart.client.search_registered_models()]
    assert [name for name in names if name.startswith("library-docs.bert-encoder-layer-")]
    assert len(names) == 3


def test_nothing_lands_outside_of_its_folder(quickstart):
    assert [path.name for path in quickstart.folder.iterdir()] == ["interpreto-quickstart"]


def test_a_second_quickstart_finds_the_classifier_and_does_not_train(quickstart):
    output = run_quickstart(quickstart.folder)
    assert "models:/library-docs/1 is registered already" in output
    assert len(quickstart.client.search_model_versions("name = 'library-docs'")) == 1
    assert len(quickstart.runs("report")) == 2


def test_mlflow_run_does_the_same(quickstart):
    """As a project: MLflow's own run becomes the report run, and the cells lie in its experiment."""
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", "quickstart", "--env-manager", "local"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [*command, "--experiment-name", "project"],
        cwd=quickstart.folder,
        env={**environment(), "PATH": path, "MLFLOW_TRACKING_URI": quickstart.uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    experiment = quickstart.client.get_experiment_by_name("project")
    runs = quickstart.client.search_runs([experiment.experiment_id])
    kinds = sorted(run.data.tags["interpreto.kind"] for run in runs)
    assert kinds == ["attributions"] * 3 + ["concepts"] * 8 + ["report"]
    report = next(run for run in runs if run.data.tags["interpreto.kind"] == "report")
    assert report.data.tags["mlflow.project.entryPoint"] == "quickstart"
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.fixture(scope="module")
def ui(quickstart):
    """The UI on the quickstart's store, as the printed command serves it."""
    port = free_port()
    printed = re.search(r"to open the MLflow UI on it: (.*)", quickstart.output)[1]
    command = printed.replace("--port 5000", f"--port {port} --workers 1")
    log = quickstart.folder.parent / "ui.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], stdout=output, stderr=output, env=environment(), start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, 9)
        process.wait(20)


def experiment_url(quickstart: Done, ui: str) -> str:
    experiment = quickstart.client.get_experiment_by_name("interpreto-quickstart")
    return f"{ui}/#/experiments/{experiment.experiment_id}"


def framed(page, address: str, words: str) -> str:
    """Open an HTML artifact in the UI's own viewer and return the text that its frame shows."""
    page.goto(address)
    frame = page.frame_locator("iframe")
    frame.get_by_text(words, exact=False).first.wait_for()
    return frame.locator("body").inner_text()


def test_the_report_run_opens_with_a_readable_summary(quickstart, ui, page):
    run = quickstart.runs("report")[-1]
    page.goto(f"{experiment_url(quickstart, ui)}/runs/{run.info.run_id}{MODE}")
    assert shows(page, "the best of 3 methods")
    text = framed(
        page,
        f"{experiment_url(quickstart, ui)}/runs/{run.info.run_id}/artifacts/report/report.html{MODE}",
        "Attributions",
    )
    for words in ("occlusion", "kernel_shap", "topk_sae", "library-docs.bert-encoder-layer-0."):
        assert words in text


def test_the_attributions_open_inline(quickstart, ui, page):
    run = next(run for run in quickstart.runs("attributions") if run.data.params["method"] == "kernel_shap")
    address = f"{experiment_url(quickstart, ui)}/runs/{run.info.run_id}/artifacts/attributions/attributions.html{MODE}"
    assert "insertion" in framed(page, address, "kernel_shap on library_docs")


def test_the_concepts_open_inline(quickstart, ui, page):
    run = next(run for run in quickstart.runs("concepts") if run.data.params["method"] == "topk_sae")
    address = f"{experiment_url(quickstart, ui)}/runs/{run.info.run_id}/artifacts/concepts/concepts.html{MODE}"
    assert "reconstruction" in framed(page, address, "topk_sae at bert.encoder.layer")


def test_the_runs_stand_in_one_table_and_the_dictionaries_in_the_models_tab(quickstart, ui, page):
    page.goto(f"{experiment_url(quickstart, ui)}/runs{MODE}")
    assert shows(page, "kernel_shap on library_docs")
    assert shows(page, "topk_sae 256 at bert.encoder.layer.1")
    page.goto(f"{experiment_url(quickstart, ui)}/models{MODE}")
    assert shows(page, "bert-encoder-layer-1-topk_sae-256-seed-0")


def test_a_version_shows_its_source_run_metrics_layer_and_model(quickstart, ui, page):
    names = [model.name for model in quickstart.client.search_registered_models()]
    name = next(name for name in names if "layer-1" in name)
    page.goto(f"{ui}/#/models/{name}/versions/1{MODE}")
    assert shows(page, "Source Run")
    assert shows(page, "at layer bert.encoder.layer.1 of library-docs (models:/library-docs/1)")
    assert shows(page, "reconstruction/r2")
    assert shows(page, "interpreto.layer")


HOSTILE = (
    "good <script>window.__pwned = 1; alert(1)</script> matrix",
    '</script><img src=x onerror="window.__pwned = 1; alert(2)"> eigenvalues',
    '"><svg onload=alert(3)> [x](javascript:alert(4)) `x` **tables**',
)


def test_no_script_of_a_hostile_text_runs_in_the_ui(quickstart, ui, page):
    """Hostile texts in a file with a hostile name, through the command and the store to the viewer of the UI."""
    data = quickstart.folder.parent / "<img src=x onerror=alert(5)>.csv"
    pd.DataFrame({"text": HOSTILE}).to_csv(data, index=False)
    common = ["--model", "models:/library-docs/1", "--data", str(data), "--tracking-uri", quickstart.uri]
    for command in (
        ["attribute", "--methods", "occlusion"],
        ["concepts", "--layers", "0", "--n-concepts", "4", "--methods", "pca"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "interpreto_mlops", *command, *common, "--experiment", "hostile", "--quiet"],
            cwd=quickstart.folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    experiment = quickstart.client.get_experiment_by_name("hostile").experiment_id
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for run in quickstart.client.search_runs([experiment]):
        kind = run.data.tags["interpreto.kind"]
        path = "report/report.html" if kind == "report" else f"{kind}/{kind}.html"
        base = f"{ui}/#/experiments/{experiment}/runs/{run.info.run_id}"
        page.goto(f"{base}{MODE}")
        page.get_by_text("Description").first.wait_for()
        framed(page, f"{base}/artifacts/{path}{MODE}", "library-docs")
        page.wait_for_timeout(500)
        assert [frame.evaluate("window.__pwned") for frame in page.frames] == [None] * len(page.frames)
    assert dialogs == []


@pytest.mark.parametrize("block", range(4))
def test_the_code_of_the_readme_runs(quickstart, block):
    save_writer(quickstart.folder, ["the food was", "we loved it and"])
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(code) == 4
    done = subprocess.run(
        [sys.executable, "-c", code[block]],
        cwd=quickstart.folder,
        env={**environment(), "MLFLOW_TRACKING_URI": quickstart.uri, "MLFLOW_EXPERIMENT_NAME": "readme"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def pages_code(*pages: str) -> list[tuple[str, int, str]]:
    """Every block of code of some pages: the page, its place there, the code."""
    texts = {page: (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8") for page in pages}
    found = {page: re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) for page, text in texts.items()}
    assert all(len(blocks) >= 3 for blocks in found.values())
    return [(page, place, code) for page, blocks in found.items() for place, code in enumerate(blocks)]


@pytest.mark.parametrize(
    "code", [pytest.param(code, id=f"{page}-{place}") for page, place, code in pages_code("concepts", "probes")]
)
def test_the_code_about_concepts_runs(quickstart, code, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path,
        env={**environment(), "MLFLOW_TRACKING_URI": quickstart.uri},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# A policy is no job: tests/audit/test_auditing.py audits by it.
ASKING = ("consim", "label")
JOBS = sorted(path for path in (ROOT / "recipes").glob("*.yaml") if path.stem not in ("policy", *ASKING))


@pytest.mark.parametrize("recipe", JOBS, ids=lambda path: path.stem)
def test_every_recipe_runs_on_the_quickstarts_store(quickstart, recipe):
    # What the recipe of generation names lies beside whoever runs it.
    save_writer(quickstart.folder, ["the food was", "we loved it and"])
    command = [sys.executable, "-m", "interpreto_mlops", "run", str(recipe)]
    done = subprocess.run(
        command, cwd=quickstart.folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "report: " in done.stdout


def reader(request: Request) -> Reply:
    """Names concepts by what is marked most often, judges by that, and draws classes."""
    if "Each sample class prediction" in request.system:
        return Reply(answer_text(Prompt(request.system, request.user), at_random))
    return namer(request)


@pytest.mark.parametrize("name", ASKING)
def test_every_recipe_that_asks_a_language_model_runs(quickstart, scripted_server, name):
    server = scripted_server(reader)
    recipe = yaml.safe_load((ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe["llm"]["base_url"] = server.base_url
    written = quickstart.folder / f"{name}.yaml"
    written.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    before = set(quickstart.folder.iterdir())
    command = [sys.executable, "-m", "interpreto_mlops", "run", str(written)]
    done = subprocess.run(
        command, cwd=quickstart.folder, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "run: " in done.stdout
    assert f"llama3.2 was asked {len(server.requests)} questions" in done.stdout
    assert {each.name for each in set(quickstart.folder.iterdir()) - before} <= {"interpreto-runs"}
    if name == "label":
        assert "registered: models:/library-docs.bert-encoder-layer-1.topk_sae/" in done.stdout
