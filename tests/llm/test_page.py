"""The code of docs/language_models.md runs as it stands, against a server that answers."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from tests.attributions.language_models import language_model
from tests.llm.scripted_server import Request, ScriptedServer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "language_models.md"
ADDRESS = "http://localhost:11434/v1"


@pytest.mark.usefixtures("nobody")
def test_the_code_runs(
    scripted_server: Callable[..., ScriptedServer],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    migrated: Path,
) -> None:
    def script(request: Request) -> str:
        return '{"topic": "food"}' if "response_format" in request.body else "food"

    server = scripted_server(script)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    teller = language_model("llama")
    teller.model.save_pretrained("models/story-teller")
    teller.tokenizer.save_pretrained("models/story-teller")
    shutil.copy(migrated, "mlflow.db")
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 6
    for block in blocks:
        # Classes of pydantic look their annotations up in a module.
        exec(compile(block.replace(ADDRESS, server.base_url), "page", "exec", dont_inherit=True), {"__name__": "page"})
    shown = capsys.readouterr().out
    assert "Answer(text='food'" in shown
    assert "1000 questions may take" in shown
    assert "topic='food'" in shown
    assert shown.rstrip().endswith("1")
    assert not any("text 0" in request.user for request in server.requests)
    mlflow.flush_trace_async_logging()
