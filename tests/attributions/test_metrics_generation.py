"""Metrics of continuations and of token labels: the prompt alone is perturbed, each target ranks its own cells."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from interpreto_mlops.attributions import AttributionSet, IntegratedGradients, KernelShap, Occlusion
from interpreto_mlops.attributions.metrics import (
    METRICS,
    Comprehensiveness,
    Deletion,
    Infidelity,
    Insertion,
    MaxSensitivity,
    SanityCheck,
    SoftComprehensiveness,
    SoftSufficiency,
    Sufficiency,
    evaluate,
)
from interpreto_mlops.attributions.metrics.max_sensitivity import explained_again
from interpreto_mlops.attributions.metrics.subjects import subjects_of
from interpreto_mlops.attributions.recall import recalled
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer

PROMPTS = ["the food was great and", "we loved it , but the waiter was"]
TARGETS = ["very good food", "slow"]
KINDS = ["gpt2", "llama", "t5"]
MASK = 4


def language_model(kind: str, seed: int = 0) -> TextModel:
    """A tiny language model with weights large enough for its outputs to differ."""
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "gpt2":
            model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, **ends))
        elif kind == "llama":
            small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
            model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **small, max_position_embeddings=64, **ends))
        else:
            config = T5Config(
                vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0, **ends
            )
            model = T5ForConditionalGeneration(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3.0 if kind != "t5" else 1.5)
    return TextModel(model.eval(), word_tokenizer(bos=False), name=kind)


def tagger() -> TextModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
        model = BertForTokenClassification(BertConfig(vocab_size=64, num_labels=3, **small, initializer_range=0.2))
    return TextModel(model.eval(), word_tokenizer(), name="tagger")


def next_tokens(model: TextModel, prompt: list[int], target: list[int], embeddings=None) -> torch.Tensor:
    """The distributions that predict each target token, by one teacher-forced call, shape (target, vocabulary)."""
    network = model.model
    with torch.no_grad():
        if network.config.is_encoder_decoder:
            decoder = torch.tensor([[network.config.decoder_start_token_id, *target[:-1]]])
            source = (
                {"input_ids": torch.tensor([prompt])} if embeddings is None else {"inputs_embeds": embeddings[None]}
            )
            return network(**source, decoder_input_ids=decoder).logits[0].softmax(-1)
        if embeddings is None:
            logits = network(input_ids=torch.tensor([[*prompt, *target]])).logits[0]
        else:
            rest = network.get_input_embeddings()(torch.tensor(target))
            logits = network(inputs_embeds=torch.cat([embeddings, rest])[None]).logits[0]
        return logits[len(prompt) - 1 : len(prompt) + len(target) - 1].softmax(-1)


def ids_of(model, prompt, target):
    return (model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, target))


def probabilities(model, prompt, target, kept):
    """p(y_t | prompt with only the kept words, y_<t) for each t; each word is one token."""
    prompt_ids, target_ids = ids_of(model, prompt, target)
    row = [token if i in kept else MASK for i, token in enumerate(prompt_ids)]
    found = next_tokens(model, row, target_ids)
    return found[torch.arange(len(target_ids)), torch.tensor(target_ids)].numpy()


def curve_metrics(p, order, n):
    """Deletion, insertion, comprehensiveness and sufficiency of a ranking, from a function of the kept words."""
    deleted, inserted = [p(order[k:]) for k in range(n + 1)], [p(order[:k]) for k in range(n + 1)]
    areas = [(sum(y) - y[0] / 2 - y[-1] / 2) / n for y in (deleted, inserted)]
    sizes = [max(1, round(share * n)) for share in (0.01, 0.05, 0.1, 0.2, 0.5)]
    lost = [deleted[0] - np.mean([y[size] for size in sizes]) for y in (deleted, inserted)]
    return [*areas, *lost]


CURVES = (Deletion, Insertion, Comprehensiveness, Sufficiency)


@pytest.mark.parametrize("kind", KINDS)
def test_each_target_ranks_its_own_cells_of_the_prompt(kind):
    model = language_model(kind)
    explanations = Occlusion(model)(PROMPTS, TARGETS)
    results = [metric(model)(explanations).values for metric in CURVES]
    for place, (item, prompt, target) in enumerate(zip(explanations, PROMPTS, TARGETS, strict=True)):
        n = len(prompt.split())
        assert np.isnan(item.scores[0, n:]).all()
        rows = []
        for t in range(len(target.split())):
            order = sorted(range(n), key=lambda i, t=t: (-item.scores[t, i], i))

            def p(kept, t=t, prompt=prompt, target=target):
                return probabilities(model, prompt, target, set(kept))[t]

            rows.append(curve_metrics(p, order, n))
        np.testing.assert_allclose([found[place] for found in results], np.mean(rows, axis=0), atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_joint_targets_have_one_ranking_and_one_probability(kind):
    model = language_model(kind)
    explanations = Occlusion(model)(PROMPTS, TARGETS)
    results = [metric(model, joint=True)(explanations).values for metric in CURVES]
    for place, (item, prompt, target) in enumerate(zip(explanations, PROMPTS, TARGETS, strict=True)):
        n = len(prompt.split())
        total = item.scores[:, :n].sum(axis=0)
        order = sorted(range(n), key=lambda i: (-total[i], i))

        def p(kept, prompt=prompt, target=target):
            return np.exp(np.log(probabilities(model, prompt, target, set(kept))).mean())

        np.testing.assert_allclose([found[place] for found in results], curve_metrics(p, order, n), atol=1e-5)


def soft_reference(metric, model, item, prompt, target, seed=0, n_draws=10):
    """Soft metrics by Hellinger distances, one call a faded prompt, each target by its own scores."""
    prompt_ids, target_ids = ids_of(model, prompt, target)
    n = len(prompt_ids)
    text = model.embedding(torch.tensor(prompt_ids)).detach()
    row = next(encoding for encoding in [question.encoding for _, question, _ in recalled(model, [item])])
    width = (len(row.ids), text.shape[1])
    whole = next_tokens(model, prompt_ids, target_ids)

    def distance(embeddings, t):
        other = next_tokens(model, prompt_ids, target_ids, embeddings)[t]
        return float((whole[t].sqrt() - other.sqrt()).norm() / 2**0.5)

    values = []
    for t in range(len(target_ids)):
        scores = item.scores[t, :n]
        share = (scores - scores.min()) / (scores.max() - scores.min())
        chance = share if metric is SoftSufficiency else 1 - share
        lost = []
        for draw in range(n_draws):
            drawn = np.random.default_rng([row.seed(seed), draw]).random(width, dtype=np.float32)[:n]
            lost.append(distance(text * torch.from_numpy(drawn < chance[:, None]), t))
        nothing = distance(torch.zeros_like(text), t)
        value = nothing - np.mean(lost) if metric is SoftSufficiency else np.mean(lost)
        values.append(np.clip(value / nothing, 0, 1))
    return np.mean(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", [SoftSufficiency, SoftComprehensiveness])
def test_soft_metrics_are_hellinger_distances(metric, kind):
    model = language_model(kind)
    explanations = Occlusion(model)(PROMPTS, TARGETS)
    result = metric(model, n_random=4)(explanations)
    rows = zip(explanations, PROMPTS, TARGETS, strict=True)
    expected = [soft_reference(metric, model, item, prompt, target) for item, prompt, target in rows]
    np.testing.assert_allclose(result.values, expected, atol=2e-4)
    assert result.log_ratio == pytest.approx(np.log(result.mean / result.random_mean))


def test_the_distance_is_that_of_the_definition():
    """(1/2, 1/2, 0) and (0, 1/2, 1/2): roots differ by 1/√2 twice, the norm is 1, over √2: √(1/2)."""
    from interpreto_mlops.models.distances import Distances
    from interpreto_mlops.models.readouts import TokenScores

    class Fixed(TokenScores):
        @classmethod
        def logits(cls, model, batch, readouts):
            return torch.tensor([[[0.5, 0.5, 1e-30]]]).log(), [[0]]

    readout = Distances(Fixed((0,), (1,), 1), 3, np.sqrt(np.float32([[0, 0.5, 0.5]])))
    assert float(Distances.read(None, {}, [readout])) == pytest.approx(0.5**0.5, abs=1e-6)


def test_soft_metrics_of_joint_targets_and_of_words_of_several_tokens():
    """One word of two tokens: its distance is the mean of theirs, which is what joint targets have, too."""
    model = language_model("gpt2")
    one = Occlusion(model, target_granularity="sentence")([PROMPTS[0]], ["very good food"])
    assert len(one[0].targets) == 1
    assert len(one[0].targets[0].ids) == 3
    each = Occlusion(model)([PROMPTS[0]], ["very good food"])
    total = np.nansum(each[0].scores, axis=0)
    scores = np.where(np.isnan(one[0].scores[0]), np.nan, np.resize(total, one[0].scores.shape[1]))[None]
    same = AttributionSet([dataclasses.replace(one[0], scores=scores)])
    joint = SoftComprehensiveness(model, joint=True)(each)
    assert joint.values[0] == pytest.approx(SoftComprehensiveness(model)(same).values[0], abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_infidelity_takes_out_words_of_the_prompt(kind):
    model = language_model(kind)
    prompt, target = "the food was", "great"
    item = Occlusion(model, inference_mode="softmax")([prompt], [target])[0]
    full = probabilities(model, prompt, target, {0, 1, 2})[0]
    errors = {1: [], 2: []}
    for size in errors:
        for removed in itertools.combinations(range(3), size):
            lost = full - probabilities(model, prompt, target, set(range(3)) - set(removed))[0]
            errors[size].append((item.scores[0, list(removed)].sum() - lost) ** 2)
    expected = (np.mean(errors[1]) + np.mean(errors[2])) / 2  # sizes 1 and 2 have the same mass
    assert Infidelity(model)(AttributionSet([item])).values[0] == pytest.approx(expected, rel=1e-3, abs=1e-12)


EXPLAINERS = [Occlusion, KernelShap, lambda model, **options: IntegratedGradients(model, n_nodes=8, **options)]


@pytest.mark.parametrize("explain", EXPLAINERS)
@pytest.mark.parametrize("kind", [*KINDS, "tagger"])
def test_a_question_asked_again_has_the_same_answer(kind, explain):
    """Elements, targets, contrasts and token ids come from the explanation alone."""
    model = tagger() if kind == "tagger" else language_model(kind)
    explainer = explain(model)
    if kind == "tagger":
        explanations = explainer(PROMPTS, contrast="LABEL_1")
    else:
        explanations = explainer(PROMPTS, TARGETS, contrast=["good very !", "quick"])
    programs = (
        explained_again(explainer, question, elements) for _, question, elements in recalled(model, explanations)
    )
    for item, scores in zip(explanations, model.engine.run(programs), strict=True):
        np.testing.assert_allclose(scores, item.scores, atol=1e-4)


@pytest.mark.parametrize("kind", [*KINDS, "tagger"])
def test_sensitivity_and_sanity_of_every_task(kind):
    model = tagger() if kind == "tagger" else language_model(kind)
    explainer = IntegratedGradients(model, n_nodes=8)
    explanations = explainer(PROMPTS, None if kind == "tagger" else TARGETS)
    near, far = (
        MaxSensitivity(model, explainer=explainer, n_draws=3, radius=radius)(explanations) for radius in (1e-5, 0.05)
    )
    assert (near.values < 0.02).all()
    assert (near.values < far.values).all()
    state = {name: value.clone() for name, value in model.model.state_dict().items()}
    result = SanityCheck(explainer, n_random=20)(explanations)
    torch.testing.assert_close(dict(model.model.state_dict()), state, rtol=0, atol=0)
    np.testing.assert_allclose(result.signed[0], 1)
    assert np.isfinite(result.signed).all()
    assert (result.signed[-1] < 1).all()
    assert result.depths[-1] == "embeddings"


def test_every_metric_of_a_continuation_in_one_call():
    model = language_model("gpt2")
    explainer = IntegratedGradients(model, n_nodes=4)
    explanations = explainer(PROMPTS, generation={"max_new_tokens": 3})
    results = evaluate(explanations, model, explainer=explainer, n_random=4, n_draws=2)
    assert set(results) >= {name for name, metric in METRICS.items() if not metric.needs and not metric.costly}
    for result in results.values():
        assert np.isfinite(result.values).all(), result
        low, high = result.bounds
        assert ((low <= result.values) & (result.values <= high)).all(), result


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_depends_on_the_text_alone(kind):
    model = language_model(kind)
    names = ["deletion", "infidelity", "soft_sufficiency"]
    explanations = Occlusion(model)(PROMPTS, TARGETS)
    together = evaluate(explanations, model, names, n_random=4)
    for i in range(len(PROMPTS)):
        alone = evaluate(explanations[i : i + 1], model, names, n_random=4)
        for name in names:
            assert together[name].values[i] == pytest.approx(alone[name].values[0], abs=1e-5)
            assert together[name].random_values[i] == pytest.approx(alone[name].random_values[0], abs=1e-5)


def test_labels_of_tokens_by_hand():
    """Deletion of a tagger: for each word's label, the probability at that word while words are masked, itself too."""
    model = tagger()
    text = "the food was great"
    item = Occlusion(model)([text])[0]
    ids = model.tokenizer(text)["input_ids"]
    n = 4
    assert item.scores.shape == (n, n)
    areas = []
    for t, target in enumerate(item.targets):
        order = sorted(range(n), key=lambda i, t=t: (-item.scores[t, i], i))
        y = []
        for k in range(n + 1):
            row = [token if i in (0, n + 1) or i - 1 in order[k:] else MASK for i, token in enumerate(ids)]
            with torch.no_grad():
                y.append(float(model.model(input_ids=torch.tensor([row])).logits[0, t + 1].softmax(-1)[target.id]))
        areas.append((sum(y) - y[0] / 2 - y[-1] / 2) / n)
    assert Deletion(model)(AttributionSet([item])).values[0] == pytest.approx(np.mean(areas), abs=1e-5)


def test_a_target_leaves_out_the_cells_that_it_cannot_see():
    """Scores of a tagger with NaN cells: each target's ranking and rows are those of its own cells, others stay."""
    model = tagger()
    text = "the food was great"
    item = Occlusion(model)([text])[0]
    holes = item.scores.copy()
    holes[0, 2:] = np.nan
    holes[3] = np.nan
    odd = dataclasses.replace(item, scores=holes)
    (subject,) = subjects_of(AttributionSet([odd]), model, "auto")
    assert [(targets.tolist(), players.tolist()) for targets, players in subject.groups()] == [
        ([0], [0, 1]),
        ([1, 2], [0, 1, 2, 3]),
    ]
    each = []
    for t in range(3):
        one = dataclasses.replace(odd, scores=holes[t : t + 1], targets=item.targets[t : t + 1])
        each.append([metric(model)(AttributionSet([one])).values[0] for metric in CURVES])
    found = [metric(model)(AttributionSet([odd])).values[0] for metric in CURVES]
    np.testing.assert_allclose(found, np.mean(each, axis=0), atol=1e-6)
    ids = model.tokenizer(text)["input_ids"]
    order = sorted(range(2), key=lambda i: (-holes[0, i], i))
    rows = [[MASK if i - 1 in order[:k] else token for i, token in enumerate(ids)] for k in range(3)]
    with torch.no_grad():
        y = [model.model(input_ids=torch.tensor([row])).logits[0, 1].softmax(-1)[item.targets[0].id] for row in rows]
    assert each[0][0] == pytest.approx(float((y[0] + 2 * y[1] + y[2]) / 4), abs=1e-5)


def test_a_prompt_without_words_is_skipped():
    model = language_model("gpt2")
    item = Occlusion(model)(PROMPTS[:1], TARGETS[:1])[0]
    bare = dataclasses.replace(item, prompt_tokens=0)
    assert Deletion(model)(AttributionSet([bare])).skipped == {"no elements": 1}
