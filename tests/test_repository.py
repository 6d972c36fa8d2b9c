"""The repository holds together: versions, lock, projects, documentation and commands say the same."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import interpreto_mlops
from benchmarks.peers.environments import PEERS
from interpreto_mlops.models.text_model import TextModel
from tools import check_docs, lock

ROOT = Path(__file__).resolve().parents[1]
PROJECT = lock.tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CORE = [Requirement(line) for line in PROJECT["dependencies"]]
EXTRAS = [Requirement(line) for extra in PROJECT["optional-dependencies"].values() for line in extra]
LOCK = [
    Requirement(line)
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def names(requirements: Iterable[Requirement]) -> set[str]:
    return {canonicalize_name(each.name) for each in requirements}


def applies(requirement: Requirement, python: str) -> bool:
    environment = {"python_version": python, "python_full_version": f"{python}.1", "extra": ""}
    return requirement.marker is None or requirement.marker.evaluate(environment)


def pins(python: str) -> dict[str, str]:
    """What the lock installs on that Python."""
    chosen = [each for each in LOCK if applies(each, python)]
    assert len(names(chosen)) == len(chosen), "a package is pinned twice for one Python"
    return {canonicalize_name(each.name): next(iter(each.specifier)).version for each in chosen}


class TestVersions:
    def test_the_package_and_the_project_agree(self) -> None:
        assert interpreto_mlops.__version__ == PROJECT["version"]

    def test_the_newest_changelog_entry_is_of_this_version(self) -> None:
        changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        entries = re.split(r"^## ", changelog, flags=re.MULTILINE)[1:]
        assert entries[0].startswith("[Unreleased]")
        assert any(PROJECT["version"] in entry for entry in entries[:2])

    def test_supported_pythons_are_those_of_the_lock(self) -> None:
        allowed = SpecifierSet(PROJECT["requires-python"])
        assert [f"3.{minor}" for minor in range(8, 20) if f"3.{minor}" in allowed] == list(lock.PYTHONS)


class TestLock:
    @pytest.mark.parametrize("python", lock.PYTHONS)
    def test_every_requirement_is_pinned_within_its_range(self, python: str) -> None:
        pinned = pins(python)
        for requirement in CORE + EXTRAS:
            if applies(requirement, python):
                name = canonicalize_name(requirement.name)
                assert name in pinned, f"{requirement} is not in the lock for Python {python}"
                assert requirement.specifier.contains(pinned[name], prereleases=True), f"{requirement}: {pinned[name]}"

    def test_what_is_left_out_is_absent(self) -> None:
        present = names(LOCK)
        assert not present & lock.VISION
        assert not [name for name in present if name.startswith(lock.ACCELERATOR_PREFIXES)]

    def test_holds_plain_pins_only(self) -> None:
        for requirement in LOCK:
            (specifier,) = requirement.specifier
            assert specifier.operator == "=="
            assert "+" not in specifier.version
            assert requirement.url is None

    def test_is_closed(self) -> None:
        """Nothing that a locked package needs is missing, but for what is left out on purpose."""
        pinned = pins(f"{sys.version_info[0]}.{sys.version_info[1]}")
        missing = set()
        for name, version in pinned.items():
            if importlib.metadata.version(name).split("+")[0] != version:
                continue  # another release is installed here, whose needs may be others
            needs = [Requirement(line) for line in importlib.metadata.requires(name) or []]
            missing |= names(each for each in needs if applies(each, f"3.{sys.version_info[1]}")) - pinned.keys()
        assert {name for name in missing if not name.startswith(lock.ACCELERATOR_PREFIXES)} == lock.VISION

    def test_markers_hold_for_exactly_the_pythons_that_differ(self) -> None:
        given = {
            "3.10": {"old": "1", "same": "5", "outer": "1"},
            "3.11": {"old": "2", "same": "5", "outer": "2", "middle": "1"},
            "3.12": {"old": "3", "same": "5", "outer": "1"},
        }
        merged = [Requirement(line) for line in lock.merge(given)]
        for python, expected in given.items():
            chosen = {each.name: next(iter(each.specifier)).version for each in merged if applies(each, python)}
            assert chosen == expected
        assert "same==5" in lock.merge(given)


def imported(folder: str) -> set[str]:
    """The top-level modules that the Python files below a folder import."""
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    local = {"interpreto_mlops", *(path.stem for path in ROOT.iterdir() if path.is_dir())}
    local |= {each.stem for path in (ROOT / folder).rglob("*.py") for each in (path, path.parent)}
    return found - sys.stdlib_module_names - local


def providers() -> dict[str, set[str]]:
    """The installed distributions that hold each top-level module."""
    found: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        for module in {file.parts[0].removesuffix(".py") for file in distribution.files or []}:
            found.setdefault(module, set()).add(canonicalize_name(distribution.metadata["Name"]))
    return found


@pytest.mark.parametrize(
    ("folder", "declared"),
    [("interpreto_mlops", CORE), ("tests", CORE + EXTRAS), ("tools", CORE + EXTRAS), ("benchmarks", CORE + EXTRAS)],
)
def test_what_is_imported_is_declared(folder: str, declared: list[Requirement]) -> None:
    held_by = providers()
    conditional = {"tomli", "tomllib"}
    if folder == "benchmarks":
        conditional |= PEERS.keys()  # each is installed in an environment of its own
    undeclared = {
        module for module in imported(folder) - conditional if not held_by.get(module, set()) & names(declared)
    }
    assert not undeclared


def entry_points() -> dict[str, Any]:
    from mlflow.projects._project_spec import load_project

    return dict(load_project(str(ROOT))._entry_points)


class TestProjectFile:
    def test_has_the_main_jobs(self) -> None:
        assert set(entry_points()) == {"quickstart", "attribute", "concepts"}

    @pytest.mark.parametrize("name", ["quickstart", "attribute", "concepts"])
    def test_each_entry_point_is_a_command_that_takes_these_options(self, name: str, tmp_path: Path) -> None:
        from interpreto_mlops.cli import main

        entry = entry_points()[name]
        data = tmp_path / "data.csv"
        data.write_text("text\nfine\n", encoding="utf-8")
        given = {"model": "a model; rm", "data": str(data), "layers": "1,2"}
        parameters = {key: value for key, value in given.items() if key in entry.parameters}
        python, flag, module, command, *options = shlex.split(entry.compute_command(parameters, str(tmp_path)))
        assert (python, flag, module) == ("python", "-m", "interpreto_mlops")
        context = click.Context(main, info_name="interpreto-mlops")
        parsed = main.get_command(context, command).make_context(command, options, parent=context)
        if "model" in parameters:
            assert parsed.params["model"] == "a model; rm"

    def test_the_environment_is_the_lock(self) -> None:
        from mlflow.utils.environment import _PythonEnv

        environment = _PythonEnv.from_yaml(str(ROOT / "python_env.yaml"))
        assert environment.python in lock.PYTHONS
        assert "-r requirements.lock" in environment.dependencies


class TestDocumentation:
    def test_is_up_to_date_and_its_links_lead_somewhere(self) -> None:
        # In a process of its own: other tests may have registered methods in this one.
        checked = subprocess.run([sys.executable, ROOT / "tools" / "check_docs.py"], capture_output=True, text=True)
        assert checked.stderr == ""
        assert checked.returncode == 0

    def test_the_reference_names_everything(self) -> None:
        from interpreto_mlops.attributions import METHODS
        from interpreto_mlops.cli import main
        from interpreto_mlops.concepts import DICTIONARIES

        text = check_docs.reference()
        for name in (*METHODS.names(), *DICTIONARIES.names()):
            assert f"### {name} (" in text
        for command in main.list_commands(click.Context(main)):
            assert f"### interpreto-mlops {command}\n" in text

    def test_a_link_that_leads_nowhere_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(check_docs, "ROOT", tmp_path)
        (tmp_path / "a.md").write_text("# Ünique Title!\n[x](b.md) [y](#nique) [z](a.md#ünique-title) ![p](no.png)\n")
        (tmp_path / "c.md").write_text("```\n[x](b.md)\n```\n`[x](b.md)` [web](https://example.org/x.md) [a](a.md)\n")
        found = "\n".join(check_docs.broken_links())
        assert found.count("\n") == 2
        assert "'b.md' leads to no file" in found
        assert "'no.png' leads to no file" in found
        assert "'#nique' leads to no heading" in found


class TestCommands:
    def test_ci_is_a_program(self) -> None:
        script = ROOT / ".ci" / "run"
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", script], check=True)

    def test_installation_puts_torch_first_and_the_rest_without_dependencies(self) -> None:
        shown = subprocess.run(
            ["make", "--dry-run", "--always-make", ".venv/.installed"],
            cwd=ROOT,
            env={**os.environ, "MAKEFLAGS": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        first, *others = [line for line in shown.splitlines() if " -m pip " in line]
        assert first.endswith(f"-c requirements.lock torch=={lock.HELD['torch']}")
        assert len(others) == 2
        assert all("--no-deps" in line for line in others)

    def test_make_has_the_targets_that_are_documented(self) -> None:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
        documented = set(re.findall(r"`make ([a-z-]+)[ `]", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")))
        assert {"quickstart", "test", "check", "format", "ui", "lock", "clean"} <= targets
        assert documented <= targets


def load_example(marker: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the code block of CONTRIBUTING.md that holds `marker`, as the file that it is said to be."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
    (source,) = [block for block in blocks if marker in block]
    path = folder / "contributed.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("contributed", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "contributed", module)
    spec.loader.exec_module(module)
    return module


class TestContributingExamples:
    def test_the_attribution_method_works(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., TextModel]
    ) -> None:
        from interpreto_mlops.attributions import METHODS, Occlusion

        monkeypatch.setattr(METHODS, "_items", dict(METHODS.items()))
        method = load_example("METHODS.register", tmp_path, monkeypatch).LeaveOneIn
        assert METHODS.get("leave_one_in") is method
        model = tiny_model()
        # Alone in the text, an element is worth the same left in or taken out.
        (alone,), (expected,) = method(model)(["awful"]), Occlusion(model)(["awful"])
        assert alone.scores == pytest.approx(expected.scores, abs=1e-6)
        (several,) = method(model)(["awful soup again"])
        assert several.scores.shape == (1, 3)

    def test_the_dictionary_works(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        from interpreto_mlops.concepts import DICTIONARIES, ConceptDictionary

        monkeypatch.setattr(DICTIONARIES, "_items", dict(DICTIONARIES.items()))
        family = load_example("DICTIONARIES.register", tmp_path, monkeypatch).RandomDirections
        rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
        # As many orthonormal directions as dimensions lose nothing.
        fitted = family(n_concepts=6).fit(rows)
        torch.testing.assert_close(fitted.decode(fitted.encode(rows)), rows)
        loaded = ConceptDictionary.load(fitted.save(tmp_path / "saved"))
        assert torch.equal(loaded.encode(rows), fitted.encode(rows))


def test_the_readme_counts_the_methods_and_metrics_that_there_are():
    from interpreto_mlops.attributions import METHODS
    from interpreto_mlops.attributions.metrics import METRICS
    from interpreto_mlops.concepts import DICTIONARIES

    words = {16: "sixteen", 17: "seventeen", 18: "eighteen"}
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{words[len(METHODS)]} methods" in readme
    assert f"{words[len(METRICS)]} metrics" in readme
    assert f"{words[len(DICTIONARIES)].capitalize()} families of dictionaries" in readme
