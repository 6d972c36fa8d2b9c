"""The engine's limits: memory, the token budget, half precision and compiled forwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoTokenizer, BertForSequenceClassification

from interpreto_mlops.attributions import InputXGradient, KernelShap, Occlusion, Saliency
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models import budgets
from interpreto_mlops.models.coalition_table import CoalitionTable
from interpreto_mlops.models.engine import Engine
from interpreto_mlops.models.loading import load_model
from interpreto_mlops.models.readouts import TokenScores
from interpreto_mlops.models.requests import ScoreRequest
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import WORDS
from tests.models.test_engine_prefixes import PROMPT, TARGET, decoder


def test_a_table_is_bounded_by_bytes_and_forgets_what_was_used_longest_ago():
    table = CoalitionTable(most_bytes=5000)
    for k in range(100):
        table.put(bytes([k]), np.full(10, float(k)), None)
        assert table.get(bytes([0]), None) is not None
        assert table.nbytes <= 5000
    assert len(table) == 10
    assert table.get(bytes([50]), None) is None
    np.testing.assert_array_equal(table.get(bytes([99]), None), np.full(10, 99.0))


def test_rows_go_with_their_program_unless_another_one_wants_them():
    table, one, other = CoalitionTable(), object(), object()
    for key in (b"own", b"common"):
        table.put(key, np.zeros(3), one)
    assert table.get(b"common", other) is not None
    table.drop(one)
    assert table.get(b"own", other) is None
    assert table.get(b"common", other) is not None
    table.drop(other)
    keeping = CoalitionTable(keeps=True)
    keeping.put(b"own", np.zeros(3), one)
    keeping.drop(one)
    assert len(keeping) == 1


def test_a_call_keeps_no_rows_of_texts_that_are_done(tiny_model, monkeypatch):
    model = tiny_model()
    tables = []
    monkeypatch.setattr(
        "interpreto_mlops.models.engine.CoalitionTable", lambda **k: tables.append(CoalitionTable(**k)) or tables[-1]
    )
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS[:-4], size=8 + k % 3)) for k in range(60)]
    model.engine.token_budget = 64
    most = max(len(tables[0]) for _ in Occlusion(model).stream(texts))
    assert most < 60 * 11 / 2  # 10 to 12 rows a text
    assert len(tables[0]) <= 12  # rows that several texts have in common, such as the empty ones


def test_batches_are_small_where_a_row_makes_many_numbers(monkeypatch):
    monkeypatch.setitem(sys.modules["interpreto_mlops.models.engine"]._NUMBERS, "cpu", 4 * 10 * 64)
    model = decoder("llama", token_budget=4096)
    (encoding,) = model.encode([PROMPT])
    seen = []
    model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    rows = np.where(np.eye(len(encoding), dtype=bool), 4, encoding.ids)

    def program(n_targets):
        readout = TokenScores(tuple(range(5, 5 + n_targets)), (7,) * n_targets, 5)
        (answer,) = yield [ScoreRequest(encoding, rows, readout)]
        return answer

    engine = Engine(model, 4096, prefix_reuse=False)
    (ten,) = engine.run([program(10)])
    assert max(seen) == 4
    seen.clear()
    (one,) = engine.run([program(1)])
    assert max(seen) == len(rows)
    np.testing.assert_allclose(ten[:, :2], one, atol=1e-5 * abs(one).max())


_MEMORY = """
import resource, sys
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from interpreto_mlops.attributions import KernelShap, Occlusion, InputXGradient
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer
torch.set_num_threads(1)
config = GPT2Config(vocab_size=50257, n_embd=64, n_layer=2, n_head=2, n_positions=128, bos_token_id=2, eos_token_id=3)
tokenizer = word_tokenizer(bos=False)
tokenizer.model_max_length = 128
model = TextModel(GPT2LMHeadModel(config).eval(), tokenizer, name="gpt2")
words = "the food was good and soup cold but waiter slow never here".split()
def text(k):
    return " ".join(words[(k * 7 + j * j) % 12] for j in range(12 + k % 3))
for count in (2, int(sys.argv[1])):
    texts = [text(k) for k in range(count)]
    targets = [" ".join([*text(k + 1).split(), *words][:20]) for k in range(count)]
    for method, mode in ((Occlusion, "log_softmax"), (InputXGradient, "log_softmax"), (KernelShap, "logits")):
        options = {"n_perturbations": 64} if method is KernelShap else {}
        for item in method(model, inference_mode=mode, **options).stream(texts, targets=targets):
            assert len(item.targets) == 20
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_texts():
    """Vocabulary of 50,257, 20 targets a text, each count of texts in a process of its own."""

    def peak(count):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [sys.executable, "-c", _MEMORY, str(count)], capture_output=True, text=True, env=environment, check=True
        )
        return int(done.stdout.split()[-1])

    few, many = peak(8), peak(32)
    assert many <= 1.08 * few + 16, f"{few} MB for 8 texts, {many} MB for 32"


def rates(**tokens_per_second):
    return {int(name[1:]): rate for name, rate in tokens_per_second.items()}


def test_the_tuner_tries_each_budget_and_takes_a_clearly_faster_one():
    for speeds, best in (
        (rates(b512=10, b1024=10, b2048=10.2, b4096=9), 1024),
        (rates(b512=10, b1024=10, b2048=12, b4096=9), 2048),
        (rates(b512=20, b1024=10, b2048=12, b4096=9), 512),
    ):
        tuner, tried = budgets.BudgetTuner(torch.device("cpu")), []
        while (trial := tuner.trial) is not None:
            tried.append(trial)
            tuner.record(trial, trial, trial / speeds[trial])
        assert sorted(tried) == sorted(3 * list(speeds))
        assert tuner.best == best
    tuner = budgets.BudgetTuner(torch.device("cpu"))
    tuner.refuse(2048)
    assert max(tuner.candidates) == 1024


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("INTERPRETO_MLOPS_CACHE")
    monkeypatch.setattr(budgets, "_measured", {})
    return tmp_path / "interpreto-mlops" / "token_budgets.json"


def test_a_measured_budget_is_kept_for_the_model_and_used_by_others(tiny_model, cache, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(budgets, "_CANDIDATES", {"cpu": (64, 32, 128)})
    engine = Engine(model)
    assert engine.tune(16) in (64, 32, 128)
    assert engine.counters.evaluations_run == 0
    (budget,) = json.loads(cache.read_text()).values()
    assert budget == engine.token_budget
    monkeypatch.setattr(budgets, "_measured", {})
    assert Engine(tiny_model(seed=1), "auto").token_budget == budget  # another model of the same shape
    assert Engine(tiny_model("gpt2"), "auto").token_budget == budgets.DEFAULT_TOKEN_BUDGET
    monkeypatch.setenv("INTERPRETO_MLOPS_CACHE", "0")
    monkeypatch.setattr(budgets, "_measured", {})
    assert Engine(model, "auto").token_budget == budgets.DEFAULT_TOKEN_BUDGET
    assert Engine(model).token_budget == budgets.DEFAULT_TOKEN_BUDGET


def test_auto_measures_on_a_large_job_alone_and_changes_no_score(tiny_model, texts, cache, monkeypatch):
    plain = KernelShap(tiny_model())(texts)
    monkeypatch.setattr(budgets, "_CANDIDATES", {"cpu": (64, 32, 128)})
    model = tiny_model()
    small, large = Engine(model, "auto"), Engine(model, "auto")
    model.engine = small
    Occlusion(model)(texts[1:2])
    assert small._tuner is not None
    assert not cache.exists()
    model.engine = large
    tuned = KernelShap(model)(texts)
    assert large._tuner is None
    assert list(json.loads(cache.read_text()).values()) == [large.token_budget]
    for a, b in zip(plain, tuned, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-6 * abs(b.scores).max())


@pytest.mark.parametrize("content", ["", "no json", "[1]", '{"x": "y"}'])
def test_a_damaged_cache_is_ignored(tiny_model, cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    assert Engine(tiny_model(), "auto").token_budget == budgets.DEFAULT_TOKEN_BUDGET
    budgets.remember_budget(tiny_model(), 2048)
    assert Engine(tiny_model(), "auto").token_budget == 2048


def test_a_cache_that_cannot_be_written_is_no_error(tiny_model, tmp_path, monkeypatch, cache):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    budgets.remember_budget(tiny_model(), 2048)
    assert Engine(tiny_model(), "auto").token_budget == 2048


def test_a_budget_of_another_kind_is_refused(tiny_model):
    with pytest.raises(InputError, match="must be 'auto', None or a whole number, not 'fast'"):
        Engine(tiny_model(), "fast")
    with pytest.raises(InputError, match="tokens must be at least 1, not 0"):
        Engine(tiny_model()).tune(0)


def agreement(a, b):
    return np.mean([spearmanr(x.scores[0], y.scores[0]).statistic for x, y in zip(a, b, strict=True)])


@pytest.mark.parametrize("method", [Occlusion, InputXGradient, Saliency])
def test_autocast_ranks_almost_alike_and_changes_no_weight(cebab_model, cebab_reviews, method):
    texts = list(cebab_reviews["text"][:6])
    half = TextModel(cebab_model.model, cebab_model.tokenizer, autocast="bfloat16")
    state = {name: tensor.clone() for name, tensor in cebab_model.model.state_dict().items()}
    plain, cast = method(cebab_model)(texts), method(half)(texts)
    assert agreement(plain, cast) > 0.95
    assert any((a.scores != b.scores).any() for a, b in zip(plain, cast, strict=True))
    assert cast[0].parameters["autocast"] == "bfloat16"
    assert cast[0].parameters["dtype"] == "float32"
    assert "autocast" not in plain[0].parameters
    assert all(torch.equal(tensor, state[name]) for name, tensor in cebab_model.model.state_dict().items())
    assert cast[0].scores.dtype == np.float64
    assert not torch.is_autocast_enabled("cpu")


def test_full_and_empty_text_are_scored_in_the_models_own_dtype(cebab_model, cebab_reviews):
    texts = list(cebab_reviews["text"][:4])
    half = TextModel(cebab_model.model, cebab_model.tokenizer, autocast="bfloat16")
    for a, b in zip(KernelShap(cebab_model)(texts), KernelShap(half)(texts), strict=True):
        np.testing.assert_allclose(a.output, b.output, atol=1e-5)
        np.testing.assert_allclose(a.baseline_output, b.baseline_output, atol=1e-5)
        np.testing.assert_allclose(b.scores.sum(1), b.output - b.baseline_output, atol=1e-9)


def test_autocast_of_a_language_model(cache):
    plain, half = decoder("llama", token_budget=128), decoder("llama", token_budget=128, autocast="bfloat16")
    half.engine.prefixes.wanted = True
    a, b = (Occlusion(model, inference_mode="log_softmax")([PROMPT], targets=[TARGET])[0] for model in (plain, half))
    np.testing.assert_array_equal(np.isnan(a.scores), np.isnan(b.scores))
    valid = ~np.isnan(a.scores)
    assert np.corrcoef(a.scores[valid], b.scores[valid])[0, 1] > 0.98


def test_wrong_precision_is_refused(tiny_model):
    model = tiny_model()
    with pytest.raises(InputError, match="autocast must be 'bfloat16', 'float16' or None, not 'int8'"):
        TextModel(model.model, model.tokenizer, autocast="int8")
    with pytest.raises(InputError, match="compile must be True or False, not 'yes'"):
        TextModel(model.model, model.tokenizer, compile="yes")


def test_load_model_takes_a_dtype_and_options(cebab_folder, cebab_reviews):
    model = load_model(cebab_folder, dtype="bfloat16", token_budget=512)
    assert model.dtype == torch.bfloat16
    assert model.engine.token_budget == 512
    texts = list(cebab_reviews["text"][:4])
    half = Occlusion(model)(texts)
    assert half[0].parameters["dtype"] == "bfloat16"
    assert agreement(Occlusion(load_model(cebab_folder))(texts), half) > 0.9
    with pytest.raises(UnknownNameError, match="unknown dtype 'int4'"):
        load_model(cebab_folder, dtype="int4")
    with pytest.raises(UnknownNameError, match="unknown option 'compiled'"):
        load_model(cebab_folder, compiled=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler here")
def test_compiled_scores_are_those_of_the_plain_model(cebab_folder, cebab_reviews):
    network = BertForSequenceClassification.from_pretrained(cebab_folder)
    tokenizer = AutoTokenizer.from_pretrained(cebab_folder)
    before, texts = dict(network.__dict__), list(cebab_reviews["text"][:3])
    plain = TextModel(network, tokenizer)
    both = TextModel(network, tokenizer, compile=True, autocast="bfloat16")
    expected, found = Occlusion(plain)(texts), Occlusion(both)(texts)
    assert len(both.execution._compiled) == 1
    assert agreement(expected, found) > 0.95
    for a, b in zip(expected, found, strict=True):
        # Full and empty text are compiled, too, but not cast.
        np.testing.assert_allclose(b.output, a.output, atol=1e-4)
        np.testing.assert_allclose(b.baseline_output, a.baseline_output, atol=1e-4)
        assert b.parameters["compile"] is True
    # Hooks of our own are seen, too: a padding id as replacement brings embeddings in by one.
    cast = TextModel(network, tokenizer, autocast="bfloat16")
    for method, options in ((Occlusion, {"replacement": "pad"}), (Saliency, {})):
        a, b = (method(model, **options)(texts[:2])[0] for model in (cast, both))
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-2 * abs(a.scores).max())
    assert dict(network.__dict__) == before
    assert network._compiled_call_impl is None
