"""The engine: packing, one evaluation for identical rows, counters, order, and what happens when memory runs out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from interpreto_mlops.errors import InputError, OutOfMemoryError
from interpreto_mlops.models.engine import Engine
from interpreto_mlops.models.requests import GradientRequest, ScoreRequest


def encodings(model, texts):
    return list(model.encode(texts))


def logits(model, encoding):
    with torch.no_grad():
        return model.model(**model.inputs([encoding])).logits[0].double().numpy()


def ask(encoding, rows):
    """A program: one request, its result."""
    (answer,) = yield [ScoreRequest(encoding, rows)]
    return answer


def test_results_come_in_the_order_of_the_programs_and_of_their_rows(tiny_model, texts):
    model = tiny_model()
    given = encodings(model, texts)
    rows = [np.stack([e.ids, np.where(e.special, e.ids, 4)]) for e in given]
    answers = list(Engine(model, 64).run(ask(e, r) for e, r in zip(given, rows, strict=True)))
    for encoding, row, answer in zip(given, rows, answers, strict=True):
        np.testing.assert_allclose(answer[0], logits(model, encoding), atol=1e-5)
        with torch.no_grad():
            masked = model.model(input_ids=torch.from_numpy(row[1:])).logits[0]
        np.testing.assert_allclose(answer[1], masked.numpy(), atol=1e-5)


def test_no_batch_exceeds_the_budget_and_rows_of_like_length_share_one(tiny_model):
    model = tiny_model()
    texts = [" ".join(["good"] * n) for n in (3, 20, 5, 19, 4, 18, 3, 21, 6, 20)]
    list(Engine(model).run(ask(e, e.ids[None]) for e in encodings(model, texts[:2])))  # asks whether padding disturbs
    seen = []
    handle = model.model.register_forward_pre_hook(
        lambda _m, _a, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    engine = Engine(model, 66)
    list(engine.run(ask(e, e.ids[None]) for e in encodings(model, texts)))
    handle.remove()
    assert all(rows * tokens <= 66 for rows, tokens in seen)
    assert engine.counters.batches == len(seen) < len(texts)
    assert engine.counters.padding <= 0.2 * engine.counters.tokens
    assert engine.counters.tokens + engine.counters.padding == sum(rows * tokens for rows, tokens in seen)


def test_an_identical_row_is_evaluated_once(tiny_model):
    model = tiny_model()
    (encoding,) = encodings(model, ["good food"])
    rows = np.stack([encoding.ids] * 5 + [np.where(encoding.special, encoding.ids, 4)])
    engine = Engine(model)
    first, second = engine.run(ask(encoding, rows) for _ in range(2))
    assert engine.counters.evaluations_asked == 12
    assert engine.counters.evaluations_run == 2
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[0], first[4])
    assert not np.array_equal(first[0], first[5])


def test_results_are_not_remembered_beyond_a_call(tiny_model):
    """Whoever goes on training the model between two calls must not get old scores."""
    model = tiny_model()
    (encoding,) = encodings(model, ["good food"])
    before = next(model.engine.run([ask(encoding, encoding.ids[None])]))
    with torch.no_grad():
        model.model.classifier.bias += 1
    after = next(model.engine.run([ask(encoding, encoding.ids[None])]))
    np.testing.assert_allclose(after, before + 1, atol=1e-5)


def test_a_program_may_ask_several_times_and_several_things(tiny_model):
    model = tiny_model()
    (encoding,) = encodings(model, ["good food"])

    def program():
        one, two = yield [ScoreRequest(encoding, encoding.ids[None]) for _ in range(2)]
        (three,) = yield [ScoreRequest(encoding, encoding.ids[None])]
        return np.array_equal(one, two) and np.array_equal(two, three)

    assert list(model.engine.run([program()])) == [True]


def test_rows_of_other_lengths_than_the_text_are_fine(tiny_model):
    model = tiny_model()
    (encoding,) = encodings(model, ["good food was cold"])
    answer = next(model.engine.run([ask(encoding, [encoding.ids, encoding.ids[[0, 2, -1]]])]))
    short = next(model.encode(["food"]))
    np.testing.assert_allclose(answer[1], logits(model, short), atol=1e-5)


def test_rows_of_many_lengths_are_not_padded_into_one_batch(tiny_model):
    model = tiny_model()
    given = encodings(model, [" ".join(["food"] * n) for n in range(1, 31)])
    engine = Engine(model, 1024)  # as many tokens as all of them, padded
    answers = list(engine.run(ask(encoding, [encoding.ids]) for encoding in given))
    # What padding and calls cost together, in tokens: a call counts as a 25th of a full batch.
    assert engine.counters.padding + engine.counters.batches * 1024 / 25 < 0.5 * engine.counters.tokens
    assert engine.counters.batches <= 6
    for encoding, answer in zip(given, answers, strict=True):
        np.testing.assert_allclose(answer[0], logits(model, encoding), atol=1e-4)


def gradient_program(encoding, n_points, powers=(1,)):
    def points(anchors, numbers):
        share = (numbers.to(anchors.dtype) + 1) / n_points
        return share[:, None, None] * anchors[0]

    request = GradientRequest(
        encoding,
        encoding.ids[None],
        points,
        np.full(n_points, 1 / n_points),
        lambda read: read[:, [0, 2]],
        powers,
    )
    (answer,) = yield [request]
    return answer


def test_gradient_sums_equal_autograd_point_by_point(tiny_model, texts):
    model = tiny_model()
    given = encodings(model, texts)
    answers = list(Engine(model, 50).run(gradient_program(e, 3, (1, 2)) for e in given))
    for encoding, answer in zip(given, answers, strict=True):
        ids = torch.from_numpy(encoding.ids)[None]
        embeddings = model.embedding(ids).detach()
        for column, target in enumerate((0, 2)):
            gradients = []
            for k in range(3):
                point = ((k + 1) / 3 * embeddings).requires_grad_(True)
                output = model.model(inputs_embeds=point, attention_mask=torch.ones_like(ids)).logits[0, target]
                gradients.append(torch.autograd.grad(output, point)[0][0].double())
                assert answer.values[k, column] == pytest.approx(float(output.detach()), abs=1e-4)
            stacked = torch.stack(gradients)
            scale = float(stacked.abs().max())
            np.testing.assert_allclose(answer.moments[0, column], stacked.mean(0), atol=1e-5 * scale)
            np.testing.assert_allclose(answer.moments[1, column], (stacked**2).mean(0), atol=1e-5 * scale**2)


def test_memory_that_runs_out_halves_the_budget_and_changes_nothing_else(tiny_model, texts):
    model = tiny_model()
    given = encodings(model, texts)
    expected = [logits(model, e) for e in given]

    def refuse_large(_module, _args, kwargs):
        if kwargs["input_ids"].numel() > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")

    handle = model.model.register_forward_pre_hook(refuse_large, with_kwargs=True)
    engine = Engine(model, 4096)
    answers = list(engine.run(ask(e, e.ids[None]) for e in given))
    handle.remove()
    for answer, right in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer[0], right, atol=1e-5)
    assert engine.token_budget <= 64


def test_a_row_that_does_not_fit_alone_is_named(tiny_model):
    model = tiny_model()

    def refuse(*_args, **_kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    (encoding,) = encodings(model, ["good food"])
    with pytest.raises(OutOfMemoryError, match="text 0 with 4 tokens does not fit in memory"):
        list(model.engine.run([ask(encoding, encoding.ids[None])]))


def test_other_errors_of_the_model_are_not_taken_for_memory(tiny_model):
    model = tiny_model()

    def fail(*_args, **_kwargs):
        raise RuntimeError("shapes do not match")

    model.model.register_forward_pre_hook(fail, with_kwargs=True)
    model.model.train()
    (encoding,) = encodings(model, ["good food"])
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(model.engine.run([ask(encoding, encoding.ids[None])]))
    assert model.model.training


def test_programs_are_started_as_they_are_needed(tiny_model):
    model = tiny_model()
    started = []

    def programs():
        for i in itertools.count():
            started.append(i)
            (encoding,) = encodings(model, [f"good food {'very ' * (i % 25)}"])
            yield ask(encoding, encoding.ids[None])

    results = Engine(model, 64).run(programs())
    for _ in range(20):
        next(results)
    results.close()
    assert len(started) < 2000


def test_a_budget_must_be_positive(tiny_model):
    with pytest.raises(InputError, match="at least 1, not 0"):
        Engine(tiny_model(), 0)


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried",
    ],
)
def test_gradients_are_counted_once_when_memory_runs_out_between_two_targets(tiny_model, texts, monkeypatch, message):
    model = tiny_model()
    given = encodings(model, texts)
    expected = list(Engine(model, 4096).run(gradient_program(e, 3) for e in given))
    differentiate, calls = torch.autograd.grad, []

    def fails_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError(message)
        return differentiate(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", fails_once)
    answers = list(Engine(model, 4096).run(gradient_program(e, 3) for e in given))
    for answer, right in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer.moments, right.moments, atol=1e-5 * abs(right.moments).max())
