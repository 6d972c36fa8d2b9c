"""The page about what concepts mean: it names every method, and its program runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from interpreto_mlops.concepts import INTERPRETATIONS
from tests.llm.scripted_server import ScriptedServer

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "meaning.md"


def test_every_method_is_named() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in INTERPRETATIONS.names() if f"`{name}`" not in text] == []
    assert "(meaning.md)" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_program_runs(shared: Path, tmp_path: Path) -> None:
    folder = shared / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip(f"the trained model is not there: no folder {folder}")
    (tmp_path / "stories260K").symlink_to(folder)
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    # Less text than on the page, which takes a minute.
    program = "\n".join(code).replace("head(1000)", "head(60)")
    with ScriptedServer(json.dumps({"label": "a name", "explanation": "It is one."})) as server:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OPENAI_BASE_URL": server.base_url,
                "OPENAI_API_KEY": "sk-none-of-anybody",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "head(60)" in program
        assert len(server.requests) >= 1
