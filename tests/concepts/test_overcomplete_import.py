"""Using overcomplete's parts leaves no trace of it for the user's own imports."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from interpreto_mlops.concepts.overcomplete_import import overcomplete_module
from interpreto_mlops.errors import MissingDependencyError

ROOT = Path(__file__).resolve().parents[2]

OWN_IMPORT = """
    def own_import():
        try:
            import overcomplete
        except Exception as error:
            return type(error).__name__, str(error)
        return "imported", overcomplete.__file__
"""


def run(code: str) -> str:
    prelude = textwrap.dedent(OWN_IMPORT)
    script = prelude + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_users_own_import_is_as_in_a_fresh_process() -> None:
    fresh = run("print(own_import())")
    after = run("""
        import sys
        import torch
        from interpreto_mlops.concepts import TopKSAEConcepts
        TopKSAEConcepts(n_concepts=4, k=2, n_epochs=1).fit(torch.randn(50, 6), progress=False)
        assert not [name for name in sys.modules if name.split(".")[0] == "overcomplete"], "traces are left"
        first, second = own_import(), own_import()
        assert first == second or first[0] == "imported", (first, second)
        TopKSAEConcepts(n_concepts=4, k=2, n_epochs=1).fit(torch.randn(50, 6), progress=False)
        print(first)
    """)
    assert after == fresh


@pytest.fixture
def forgotten() -> Iterator[None]:
    """Nothing of overcomplete has been imported, and nothing will have been."""
    overcomplete_module.cache_clear()
    yield
    overcomplete_module.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "overcomplete"]:
        del sys.modules[name]


@pytest.mark.usefixtures("forgotten")
def test_a_root_that_is_already_there_is_used() -> None:
    spec = importlib.util.find_spec("overcomplete")
    assert spec is not None
    root = types.ModuleType("overcomplete")
    root.__path__ = list(spec.submodule_search_locations or ())
    sys.modules["overcomplete"] = root
    assert overcomplete_module("sae") is sys.modules["overcomplete.sae"]
    assert sys.modules["overcomplete"] is root


@pytest.mark.usefixtures("forgotten")
def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"need the package overcomplete: `pip install"):
        overcomplete_module("sae")


@pytest.mark.usefixtures("forgotten")
def test_a_failing_import_leaves_nothing_behind() -> None:
    with pytest.raises(ModuleNotFoundError):
        overcomplete_module("no_such_part")
    assert not [name for name in sys.modules if name.split(".")[0] == "overcomplete"]
