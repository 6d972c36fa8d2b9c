"""Decoders: what rows have in common with their text is computed once, and logits by rows of the head alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from interpreto_mlops.attributions import InputXGradient, IntegratedGradients, KernelShap, Occlusion
from interpreto_mlops.attributions.metrics import Deletion
from interpreto_mlops.errors import InputError, OutOfMemoryError
from interpreto_mlops.models.engine import Engine
from interpreto_mlops.models.objectives import InferenceMode
from interpreto_mlops.models.prefixes import common_start
from interpreto_mlops.models.probes import check_left_to_right
from interpreto_mlops.models.readouts import TokenLogits, TokenScores
from interpreto_mlops.models.requests import ScoreRequest
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
}
MAKERS = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=64, bos_token_id=2, eos_token_id=3)
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "sliding": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)),
    "capped": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, query_pre_attn_scalar=8, final_logit_softcapping=1.0, sliding_window=4)
    ),
}
PROMPT = "The food was great and the service was very quick , but the waiter was slow and cold"
TARGET = "and the soup was awful"


def decoder(name: str, **options) -> TextModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MAKERS[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
    tokenizer = word_tokenizer(bos=False)
    tokenizer.bos_token = "[CLS]"  # what stands for a prompt of which nothing is left
    return TextModel(model.eval(), tokenizer, name=name, **options)


def both(model: TextModel, explain):
    """Explain with and without reuse; return both results and what was counted."""
    found = []
    for wanted in (False, True):
        model.engine.prefixes.wanted = wanted
        found.append(explain(model))
    return found


@pytest.mark.parametrize("replacement", ["mask", "remove"])
@pytest.mark.parametrize("name", MAKERS)
def test_reuse_equals_the_full_forward(name, replacement):
    model = decoder(name, token_budget=64)
    for method in (Occlusion, KernelShap):
        options = {"n_perturbations": 60} if method is KernelShap else {}
        explain = lambda m: method(m, replacement=replacement, **options)([PROMPT], targets=[TARGET])  # noqa: B023, E731
        plain, reused = both(model, explain)
        assert model.engine.prefixes.works
        scale = np.nanmax(abs(plain[0].scores))
        np.testing.assert_allclose(reused[0].scores, plain[0].scores, rtol=0, atol=1e-5 * scale)
        np.testing.assert_allclose(reused[0].output, plain[0].output, atol=1e-5 * scale)
        if method is Occlusion:
            assert reused.counters["tokens"] < 0.8 * plain.counters["tokens"]


def test_reuse_equals_the_full_forward_on_trained_weights(shared):
    folder = shared / "models" / "stories260K"
    folder = next(path.parent for path in folder.rglob("config.json"))
    network = AutoModelForCausalLM.from_pretrained(folder)
    model = TextModel(network, AutoTokenizer.from_pretrained(folder), token_budget=256)
    text = "Once upon a time there was a little girl named Lily. She loved to play outside in the"
    for mode in ("logits", "log_softmax"):
        explain = lambda m: Occlusion(m, inference_mode=mode)([text], generation={"max_new_tokens": 8})  # noqa: B023, E731
        plain, reused = both(model, explain)
        np.testing.assert_allclose(reused[0].scores, plain[0].scores, atol=1e-5 * np.nanmax(abs(plain[0].scores)))
        assert reused.counters["tokens"] < 0.8 * plain.counters["tokens"]


def test_reuse_is_the_same_for_metrics_and_in_other_modes():
    model = decoder("llama", token_budget=64)
    explained = Occlusion(model, inference_mode="softmax")([PROMPT, TARGET], targets=[TARGET, PROMPT])
    plain, reused = both(model, lambda m: Deletion(m, n_random=3)(explained))
    np.testing.assert_allclose(reused.values, plain.values, atol=1e-6)
    np.testing.assert_allclose(reused.random_values, plain.random_values, atol=1e-6)


def test_what_a_row_can_take_over():
    readout = TokenScores((2, 4), (7, 8), 3)
    ids = np.arange(5)

    def start(row, positions=(2, 4)):
        return common_start(readout, ids, dataclasses.replace(readout, positions=positions), np.asarray(row))

    assert start([0, 1, 9, 3, 4]) == 2
    assert start([9, 1, 2, 3, 4]) == 0
    assert start([0, 1, 2, 3, 4]) == 4  # one token is left
    assert start([0, 1, 2, 4], (2, 3)) == 3  # the fourth is taken out
    assert start([0, 2, 3, 4], (1, 3)) == 1
    # By chance the row goes on like the text, but its first target is read one place before.
    assert common_start(readout, np.asarray([5, 5, 5, 5, 4]), dataclasses.replace(readout, positions=(1, 3)),
                        np.asarray([5, 5, 5, 4])) == 1  # fmt: skip


def test_the_text_itself_need_not_be_among_the_rows():
    model = decoder("gpt2", token_budget=40)
    (encoding,) = model.encode([PROMPT])
    readout = TokenScores((3, len(encoding) - 1), (5, 6), 4)
    rows = np.tile(encoding.ids, (12, 1))
    rows[np.arange(12), np.arange(5, 17)] = 4

    def program():
        (answer,) = yield [ScoreRequest(encoding, rows, readout)]
        return answer

    plain, reused = (next(Engine(model, 40, wanted).run([program()])) for wanted in (False, True))
    np.testing.assert_allclose(reused, plain, atol=1e-5 * abs(plain).max())


def test_counters_count_what_is_computed():
    model = decoder("llama", token_budget=64)
    seen = []
    handle = model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    model.engine.prefixes.wanted = True
    assert model.engine.prefixes.works
    check_left_to_right(model)
    seen.clear()
    counters = Occlusion(model, inference_mode="softmax")([PROMPT], targets=[TARGET]).counters
    handle.remove()
    assert counters["evaluations_run"] == sum(rows for rows, _ in seen)
    assert counters["tokens"] + counters["padding"] == sum(rows * tokens for rows, tokens in seen)
    assert counters["batches"] == len(seen)
    assert all(rows * tokens <= 64 for rows, tokens in seen)


def test_auto_reuses_only_what_saves_tokens():
    model = decoder("llama", token_budget=64)
    model.engine.prefixes._works = True
    (encoding,) = model.encode([PROMPT])
    readout = TokenScores((len(encoding) - 1,), (5,), len(encoding))

    @dataclasses.dataclass
    class Row:
        ids: np.ndarray
        readout: TokenScores

    def group(places, budget=64):
        rows = [Row(np.where(np.arange(len(encoding)) == place, 4, encoding.ids), readout) for place in places]
        return model.engine.prefixes.group(ScoreRequest(encoding, encoding.ids[None]), readout, rows, budget)

    assert group([len(encoding) - 1] * 40) is not None
    assert group([0] * 40) is None
    assert group([len(encoding) - 1] * 3) is None  # they fit into one batch with room for others


def test_memory_that_runs_out_during_reuse_halves_the_budget_and_changes_nothing_else():
    model = decoder("gpt2", token_budget=4096, prefix_reuse=True)
    method = Occlusion(model, inference_mode="softmax")
    expected = method([PROMPT], targets=[TARGET])[0].scores

    def refuse_large(_module, _args, kwargs):
        if kwargs["input_ids"].numel() > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.register_forward_pre_hook(refuse_large, with_kwargs=True)
    np.testing.assert_allclose(method([PROMPT], targets=[TARGET])[0].scores, expected, atol=1e-6)
    assert model.engine.token_budget <= 60

    def refuse(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    with pytest.raises(OutOfMemoryError, match="text 0 with"):
        method([PROMPT], targets=[TARGET])


def test_a_model_that_ignores_its_cache_is_found_out(monkeypatch):
    model = decoder("gpt2", token_budget=64, prefix_reuse=True)
    forward = model.model.forward

    def forgetful(*args, past_key_values=None, **kwargs):
        return forward(*args, **kwargs)

    model.accepts, model.plain_head  # noqa: B018 - read from the true forward
    monkeypatch.setattr(model.model, "forward", forgetful)
    assert not model.engine.prefixes.works
    assert np.isfinite(Occlusion(model)([PROMPT], targets=["good"])[0].scores).any()


def test_other_values_are_refused():
    with pytest.raises(InputError, match="prefix_reuse must be 'auto', True or False, not 'yes'"):
        Engine(decoder("gpt2"), prefix_reuse="yes")


@pytest.mark.parametrize("name", MAKERS)
def test_logits_by_rows_of_the_head_equal_those_of_the_whole_vocabulary(name):
    model = decoder(name)
    assert (model.plain_head is None) == (name == "capped")
    (encoding,) = model.encode([PROMPT])
    whole = TokenScores((3, 3, len(encoding) - 1), (5, 9, 6), 4)
    alone = TokenLogits((3, 3, len(encoding) - 1), (5, 9, 6), 4)
    other = np.where(np.arange(len(encoding)) == 2, 4, encoding.ids)

    def program(readout):
        (answer,) = yield [ScoreRequest(encoding, np.stack([encoding.ids, other]), readout)]
        return answer

    pairs, logits = model.engine.run([program(whole), program(alone)])
    assert logits.shape == (2, 3)
    np.testing.assert_allclose(logits, pairs[:, ::2], atol=1e-5 * abs(pairs).max())
    # Where rows are shared, one row serves both.
    engine = Engine(model)
    with engine.shared_table():
        first, second = next(engine.run([program(alone)])), next(engine.run([program(whole)]))
    assert engine.counters.evaluations_run == 2
    np.testing.assert_array_equal(first, second[:, ::2])


@pytest.mark.parametrize("method", [Occlusion, InputXGradient, IntegratedGradients])
def test_explanations_of_logits_are_the_same_in_a_shared_job(method):
    model = decoder("llama")
    alone = method(model)([PROMPT], targets=[TARGET], contrast="food was great and good")[0]
    with model.engine.shared_table():
        shared = method(model)([PROMPT], targets=[TARGET], contrast="food was great and good")[0]
    np.testing.assert_allclose(shared.scores, alone.scores, atol=1e-5 * np.nanmax(abs(alone.scores)))
    np.testing.assert_allclose(shared.output, alone.output, atol=1e-5)


def test_logits_alone_give_no_probabilities():
    model = decoder("llama")
    from interpreto_mlops.models.targets import questions
    from interpreto_mlops.text.granularity import Granularity

    (question,) = questions(
        model, [PROMPT], [TARGET], granularity=Granularity.parse("word"), target_granularity=Granularity.parse("token")
    )
    question.narrow(InferenceMode.SOFTMAX)
    assert type(question.readout) is TokenScores
    question.narrow(InferenceMode.LOGITS)
    read = np.zeros(question.readout.width)
    objective = question.settle(read, InferenceMode.LOGITS)
    with pytest.raises(InputError, match="'softmax' needs more than the logits"):
        dataclasses.replace(objective, mode=InferenceMode.SOFTMAX)
