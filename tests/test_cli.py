"""The command line: what users type, what they see, and the exit code when something is wrong."""

from __future__ import annotations

import subprocess
import sys

import click
import pandas as pd
import pytest
from click.testing import CliRunner

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
        (["--methods", "occlusion,magic"], "unknown attribution method 'magic'; known: 'integrated_gradients'"),
        (["--tracking-uri", "http://127.0.0.1:9"], "http://127.0.0.1:9"),
        (["--max-texts", "0"], "max_texts: Input should be greater than or equal to 1"),
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
