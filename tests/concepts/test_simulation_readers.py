"""ConSim end to end: the documentation's code through a server, and a real language model as the reader."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts, consim, top_words
from interpreto_mlops.errors import RefusalError
from interpreto_mlops.llm import LocalModel, Prompt, Questioner
from interpreto_mlops.llm.simulation import Setting
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import WORDS
from tests.llm.readers import answer_text, by_importance
from tests.llm.scripted_server import ScriptedServer

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "simulatability.md"


def some_texts(n: int, longest: int = 12) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, rng.integers(3, longest))) for _ in range(n)]


def test_the_code_of_the_page_runs(
    tiny_model: Callable[..., TextModel],
    scripted_server: Callable[..., ScriptedServer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = tiny_model("distilbert", 9)
    model.model.save_pretrained(tmp_path / "reviews-model")
    model.tokenizer.save_pretrained(tmp_path / "reviews-model")
    for name, n in (("train", 80), ("test", 120)):
        labels = [model.labels[i % 3] for i in range(n)]
        pd.DataFrame({"text": some_texts(n), "label": labels}).to_csv(tmp_path / f"{name}.csv", index=False)
    server = scripted_server(lambda request: answer_text(Prompt(request.system, request.user), by_importance))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-of-the-page")
    concepts, words = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(concepts, str(PAGE), "exec"), {})
    assert len(server.requests) == 30
    exec(compile(words, str(PAGE), "exec"), {})
    # L1 and L2 tell nothing of an explanation: both ask the same of the same texts, and the cache has the answers.
    assert len(server.requests) == 50
    shown = capsys.readouterr().out
    assert "to_ask=30" in shown
    assert "SimulationResult(consim by gpt-4o-mini" in shown
    assert "SimulationResult(attributions by gpt-4o-mini" in shown


def test_a_real_language_model_is_asked_and_a_score_is_refused(
    tiny_model: Callable[..., TextModel], shared: Path
) -> None:
    """A model that tells stories answers no question: what it says is kept, and no score is made of it."""
    split = ModelWithSplitPoints(tiny_model("distilbert", 9), [1])
    texts = some_texts(30, longest=4)
    rows = split.get_activations(texts)[1]
    dictionary = PCAConcepts(n_concepts=4).fit(rows, progress=False)
    dictionary.descriptions = top_words(dictionary, rows, n_words=1)
    folder = shared / "models" / "stories260K" / "hf"
    if not folder.is_dir():
        pytest.skip(f"the small story-teller is not there: no folder {folder}")
    reader = LocalModel(folder, name="stories")
    small = {"n_learn": 1, "n_evaluate": 1, "max_tokens": 12, "seeds": [0, 1]}
    result = consim(split, dictionary, texts, Questioner(reader), settings=["L1"], **small)
    each = result.settings[Setting.L1]
    assert each.score is None
    assert each.reason is not None
    assert "0 of 2 answers" in each.reason
    assert "simulatability/L1" not in result.metrics
    questions = result.questions_frame()
    assert questions["attempt"].tolist() == [1, 2, 1, 2]
    assert (questions["answer"].str.len() > 0).all()
    assert (questions["answer_tokens"] > 0).all()
    assert result.cost.price == 0.0
    assert result.cost.retries == 2
    with pytest.raises(RefusalError, match="too long"):
        consim(split, dictionary, texts, Questioner(reader), settings=["E3"], n_learn=10, n_evaluate=10)
