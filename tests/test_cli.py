"""The command line: what users type, what they see, and the exit code when something is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from mlflow import MlflowClient

from interpreto_mlops.attributions import METHODS
from interpreto_mlops.attributions.metrics import METRICS
from interpreto_mlops.cli import main
from interpreto_mlops.concepts import DICTIONARIES


@pytest.fixture
def reviews(tmp_path):
    path = tmp_path / "reviews.tsv"
    pd.DataFrame({"text": ["good food", "awful soup"], "label": ["1", "0"]}).to_csv(path, index=False, sep="\t")
    return str(path)


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_methods_lists_every_registered_name():
    result = invoke("methods")
    assert result.exit_code == 0
    for registry in (METHODS, METRICS, DICTIONARIES):
        assert all(f"  {name} " in result.output for name in registry.names())
    assert "library_docs" in result.output


def test_every_command_has_an_example_and_every_option_help():
    for name, command in main.commands.items():
        assert "Example: interpreto-mlops" in (command.help or ""), name
        for option in command.params:
            assert isinstance(option, click.Argument) or option.help, (name, option.name)


def test_doctor_says_that_everything_fits():
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "everything fits" in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "none.csv"], "there is no data file 'none.csv'"),
        (["--text-column", "review"], "no column 'review'; its columns are 'text', 'label'"),
        (["--model", "./nowhere"], "there is no model folder './nowhere'"),
        (["--model", "nobody/nothing"], "cannot load the model 'nobody/nothing'"),
        (["--model", "models:/none/1"], "there is no model 'models:/none/1'"),
        (["--methods", "occlusion,magic"], "unknown attribution method 'magic'; known: 'attention_rollout'"),
        (["--tracking-uri", "http://127.0.0.1:9"], "http://127.0.0.1:9"),
        (["--max-texts", "0"], "max_texts: Input should be greater than or equal to 1"),
        (["--option", "kernel_shap.budget=9"], "unknown option of 'kernel_shap' 'budget'; known: 'granularity'"),
        (["--option", "kernel_shap.n_perturbations=many"], "n_perturbations must be a whole number"),
        (["--option", "lime=3"], "an option is METHOD.NAME=VALUE, not 'lime=3'"),
        (["--option", "magic.n=3"], "unknown method in options 'magic'; known: 'occlusion'"),
        (["--target-column", "gold"], "no column 'gold'"),
        (["--generate", "max_new_tokens"], "an option is KEY=VALUE, not 'max_new_tokens'"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_sentence_and_exit_code_one(
    reviews, cebab_folder, tmp_path, monkeypatch, arguments, words
):
    monkeypatch.chdir(tmp_path)
    given = {"--model": cebab_folder, "--data": reviews, "--tracking-uri": f"sqlite:///{tmp_path}/m.db"}
    given.update(dict(zip(arguments[::2], arguments[1::2], strict=True)))
    result = invoke("attribute", *(part for pair in given.items() for part in pair))
    assert result.exit_code == 1
    assert words in result.output
    assert result.output.startswith("Error: ")
    assert len(result.output.strip().splitlines()) == 1, result.output


def test_options_of_methods_go_into_the_recipe_of_each_run(reviews, cebab_folder, tmp_path):
    uri = f"sqlite:///{tmp_path}/m.db"
    given = ("--model", cebab_folder, "--data", reviews, "--tracking-uri", uri, "--n-random", 2)
    result = invoke(
        *("attribute", *given, "--methods", "kernel_shap,occlusion", "--metrics", "comprehensiveness"),
        *("--option", "kernel_shap.n_perturbations=20", "--option", "comprehensiveness.bins=[0.5]"),
    )
    assert result.exit_code == 0, result.output
    assert "no significant difference from the best" in result.output
    client = MlflowClient(uri, registry_uri=uri)
    runs = client.search_runs([client.get_experiment_by_name("interpreto").experiment_id])
    run = next(run for run in runs if run.data.params.get("method") == "kernel_shap")
    assert run.data.params["method.n_perturbations"] == "20"
    recipe = yaml.safe_load(Path(client.download_artifacts(run.info.run_id, "recipe.yaml", str(tmp_path))).read_text())
    assert recipe["options"] == {"kernel_shap": {"n_perturbations": 20}, "comprehensiveness": {"bins": [0.5]}}
    result = invoke(
        *("concepts", "--model", cebab_folder, "--data", reviews, "--tracking-uri", uri, "--layers", 0),
        *("--methods", "topk_sae", "--n-concepts", 3, "--seeds", 1, "--no-register"),
        *("--option", "topk_sae.k=2", "--option", "topk_sae.n_epochs=1"),
    )
    assert result.exit_code == 0, result.output
    runs = client.search_runs([client.get_experiment_by_name("interpreto").experiment_id])
    assert any(run.data.params.get("method.k") == "2" for run in runs)


def test_a_wrong_layer_names_those_there_are(reviews, cebab_folder, tmp_path):
    result = invoke(
        *("concepts", "--model", cebab_folder, "--data", reviews),
        *("--layers", "5", "--tracking-uri", f"sqlite:///{tmp_path}/m.db"),
    )
    assert result.exit_code == 1
    assert "5" in result.output
    assert "0" in result.output


@pytest.mark.slow
def test_a_job_on_the_users_own_review_file_as_a_real_process(cebab_folder, cebab_reviews, tmp_path):
    """CEBaB's reviews through the installed command; quiet means quiet, and the output is no terminal: no bars."""
    cebab_reviews.head(12).to_parquet(tmp_path / "reviews.parquet")
    base = [sys.executable, "-m", "interpreto_mlops"]
    attribute = [
        *base,
        "attribute",
        "--model",
        str(cebab_folder),
        "--data",
        "reviews.parquet",
        "--label-column",
        "label",
    ]
    loud = subprocess.run(attribute, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert loud.returncode == 0, loud.stderr
    assert "kernel_shap" in loud.stdout
    assert "mlflow server --backend-store-uri" in loud.stdout
    assert "%|" not in loud.stderr + loud.stdout
    assert (tmp_path / "interpreto-runs" / "mlflow.db").is_file()
    quiet = subprocess.run([*attribute, "--quiet"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (quiet.returncode, quiet.stdout) == (0, ""), quiet.stderr
    concepts = [*base, "concepts", "--model", str(cebab_folder), "--data", "reviews.parquet", "--layers", "0"]
    learned = subprocess.run(
        [*concepts, "--n-concepts", "16"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert learned.returncode == 0, learned.stderr
    assert "tiny_bert_cebab.bert-encoder-layer-0." in learned.stdout


def test_the_record_of_a_command_holds_no_password(monkeypatch):
    from interpreto_mlops.cli.common import this_command

    address = "http://bob:s3cret@127.0.0.1:5000"
    monkeypatch.setattr("sys.argv", ["interpreto-mlops", "verify", "models:/x/1", "--tracking-uri", address])
    assert this_command() == "interpreto-mlops verify models:/x/1 --tracking-uri 'http://***@127.0.0.1:5000'"
