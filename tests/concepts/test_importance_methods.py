"""The methods of concept importance by laws: linear suffixes, brute force through plain hooks, efficiency, designs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from interpreto_mlops.concepts import (
    IMPORTANCE,
    ConceptDictionary,
    LocalImportance,
    ModelWithSplitPoints,
    NMFConcepts,
    PCAConcepts,
    TopKSAEConcepts,
    concept_importance,
    local_importance,
)
from interpreto_mlops.concepts.importance import Ablation, IntegratedGradients, Shapley, Sobol
from interpreto_mlops.concepts.importance.base import VariantMethod
from interpreto_mlops.errors import InputError, ModelOutputError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer

Floats = npt.NDArray[np.float64]
MakeModel = Callable[..., TextModel]
METHODS = IMPORTANCE.names()
# Few and quick; that Shapley values are exact and that the path is fine enough is what the laws need.
SMALL = {
    "shapley": {"exact_up_to": 5, "n_permutations": 2},
    "sobol": {"n_designs": 4},
    "integrated_gradients": {"n_points": 4},
}
every_method = pytest.mark.parametrize("name", METHODS)


def made(name: str, **parameters: Any) -> Any:
    return IMPORTANCE.get(name)(**{**SMALL.get(name, {}), **parameters})


def sae(
    split: ModelWithSplitPoints, texts: list[str], layer: int | str = 1, k: int = 2, **options: Any
) -> ConceptDictionary:
    rows = split.get_activations(texts, **options)[layer]
    return TopKSAEConcepts(n_concepts=min(6, len(rows)), k=k, n_epochs=5, batch_size=8).fit(rows, progress=False)


def scorer(
    model: TextModel, module: torch.nn.Module, dictionary: ConceptDictionary, text: str, *, keep_error: bool = True
) -> tuple[Callable[[Floats], Floats], torch.Tensor]:
    """The logits of one text with shares of its codes kept, token rows, by a plain hook on the whole model."""
    (encoding,) = model.encode([text])
    ids = torch.from_numpy(encoding.ids)[None]
    kept_rows = torch.from_numpy(np.flatnonzero(~encoding.special))
    seen: list[torch.Tensor] = []

    def score(shares: Floats) -> Floats:
        def replace(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            rows = output[0, kept_rows]
            codes = dictionary.encode(rows)
            seen.append(codes)
            changed = dictionary.decode(codes * torch.from_numpy(np.asarray(shares, dtype=np.float32)))
            before = dictionary.decode(codes) if keep_error else rows
            out = output.clone()
            out[0, kept_rows] += changed - before
            return out

        handle = module.register_forward_hook(replace)
        try:
            with torch.no_grad():
                logits: Floats = model.model(input_ids=ids).logits[0].double().numpy()
        finally:
            handle.remove()
        return logits

    score(np.ones(dictionary.n_concepts))
    return score, seen[0]


@pytest.fixture
def ready(tiny_model: MakeModel, texts: list[str]) -> tuple[ModelWithSplitPoints, ConceptDictionary]:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    return split, sae(split, texts)


def test_ablation_and_shapley_values_by_brute_force(
    ready: tuple[ModelWithSplitPoints, ConceptDictionary], texts: list[str]
) -> None:
    split, dictionary = ready
    module = split.model.model.bert.encoder.layer[1]
    by_name = {
        name: list(local_importance(split, dictionary, texts, method=made(name), targets=[[0, 2]] * len(texts)))
        for name in ("ablation", "shapley")
    }
    for place, text in enumerate(texts):
        score, codes = scorer(split.model, module, dictionary, text)
        active = np.flatnonzero((codes != 0).any(0).numpy())
        assert len(active) <= 6
        full = score(np.ones(6))[[0, 2]]
        ablation = by_name["ablation"][place]
        np.testing.assert_allclose(ablation.scores, full, atol=1e-5)
        shapley = np.zeros((2, 6))
        for i in active:
            without = score(1.0 - np.eye(6)[i])[[0, 2]]
            np.testing.assert_allclose(ablation.totals[:, i], full - without, atol=1e-5)
        orders = list(permutations(active))
        known: dict[frozenset[int], Floats] = {}

        def value(kept: Floats, known: dict[frozenset[int], Floats] = known, score: Any = score) -> Floats:
            key = frozenset(np.flatnonzero(kept).tolist())
            if key not in known:
                known[key] = score(kept)[[0, 2]]
            return known[key]

        for order in orders:
            kept = np.isin(np.arange(6), active, invert=True).astype(float)
            for i in order:
                before = value(kept)
                kept[i] = 1.0
                after = value(kept)
                shapley[:, i] += (after - before) / len(orders)
        np.testing.assert_allclose(by_name["shapley"][place].totals, shapley, atol=2e-5)
        inactive = [i for i in range(6) if i not in active]
        assert not ablation.totals[:, inactive].any()


@pytest.mark.parametrize("keep_error", [True, False])
def test_values_sum_to_the_loss_of_all_concepts(
    keep_error: bool, ready: tuple[ModelWithSplitPoints, ConceptDictionary], texts: list[str]
) -> None:
    split, dictionary = ready
    module = split.model.model.bert.encoder.layer[1]
    methods = [Shapley(exact_up_to=0, n_permutations=1), Shapley(), IntegratedGradients(n_points=24)]
    for method, tolerance in zip(methods, (1e-5, 1e-5, 2e-3), strict=True):
        for local, text in zip(
            local_importance(split, dictionary, texts, method=method, targets=1, keep_error=keep_error),
            texts,
            strict=True,
        ):
            score, _ = scorer(split.model, module, dictionary, text, keep_error=keep_error)
            lost = score(np.ones(6))[1] - score(np.zeros(6))[1]
            assert local.totals[0].sum() == pytest.approx(lost, abs=tolerance * max(1.0, abs(lost)))


def test_behind_a_linear_suffix_all_ways_agree(tiny_model: MakeModel, texts: list[str]) -> None:
    """What the classifier's last layer reads: the score is linear in the codes."""
    split = ModelWithSplitPoints(tiny_model("distilbert"), ["head"])
    model = split.model
    rows = torch.cat([split.capture(model.inputs([each]))[split.split_points[0]] for each in model.encode(texts)])
    dictionary = NMFConcepts(n_concepts=4).fit(rows, progress=False)
    found = {
        name: list(local_importance(split, dictionary, texts, method=made(name), targets=[[0, 1]] * len(texts)))
        for name in ("gradient_x_activation", "ablation", "integrated_gradients", "shapley")
    }
    for name, each in found.items():
        for local, expected in zip(each, found["gradient_x_activation"], strict=True):
            np.testing.assert_allclose(local.totals, expected.totals, atol=2e-5, err_msg=name)
    weight = split.model.model.classifier.weight.detach()
    exact = (dictionary.dictionary * dictionary.scale) @ weight.T
    (local, *_) = local_importance(split, dictionary, texts, method="gradient", targets=0)
    np.testing.assert_allclose(local.totals[0], exact[:, 0].numpy(), atol=1e-5)


@every_method
def test_texts_alone_and_in_company_are_the_same(
    name: str, ready: tuple[ModelWithSplitPoints, ConceptDictionary], texts: list[str]
) -> None:
    split, dictionary = ready
    many = [*texts, texts[0], "", texts[1]]
    together = list(local_importance(split, dictionary, many, method=made(name), seed=3))
    assert [local.index for local in together] == [0, 1, 2, 3, 4, 5, 6, 7]
    tight = list(local_importance(split, dictionary, many, method=made(name), seed=3, token_budget=1))
    for local, other in zip(together, tight, strict=True):
        (alone,) = local_importance(split, dictionary, [local.text], method=made(name), seed=3)
        for one in (other, alone):
            # A Sobol index is a share of a variance, which is small where the scores are much alike.
            tolerance = 1e-3 if name == "sobol" else 1e-6
            np.testing.assert_allclose(one.totals, local.totals, atol=tolerance * max(1.0, np.abs(local.scores).max()))
    np.testing.assert_allclose(together[0].totals, together[5].totals, atol=tolerance)
    assert np.isfinite(together[6].totals).all()


@every_method
def test_results_fit_together(
    name: str, ready: tuple[ModelWithSplitPoints, ConceptDictionary], texts: list[str]
) -> None:
    split, dictionary = ready
    for local in local_importance(split, dictionary, texts, method=made(name)):
        assert local.totals.shape == (1, 6)
        assert local.codes.shape == (len(local.spans), 6)
        assert (local.values is not None) == IMPORTANCE.get(name).per_row
        if local.values is not None:
            np.testing.assert_allclose(local.values.sum(axis=1), local.totals)
        best = local.top(0, 2)
        assert abs(local.totals[0, best[0]]) == np.abs(local.totals[0]).max()
    overall = concept_importance(split, dictionary, texts, method=made(name), progress=False)
    assert overall.method == name
    assert sum(overall.n_texts) == len(texts)
    locals_ = list(local_importance(split, dictionary, texts, method=made(name)))
    for k in range(3):
        mine = [local.totals[0] for local in locals_ if local.targets[0].id == k]
        if mine:
            np.testing.assert_allclose(overall.values[k], np.mean(mine, axis=0))


@contextmanager
def unchanged(model: TextModel) -> Iterator[None]:
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    modes = [module.training for module in model.model.modules()]
    flags = [parameter.requires_grad for parameter in model.model.parameters()]
    grad = torch.is_grad_enabled()
    yield
    for name, tensor in model.model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    assert [module.training for module in model.model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.model.modules())
    assert torch.is_grad_enabled() == grad


@every_method
def test_the_model_is_left_as_it_was_also_after_an_error(
    name: str, ready: tuple[ModelWithSplitPoints, ConceptDictionary], texts: list[str]
) -> None:
    split, dictionary = ready
    split.model.model.train()
    with unchanged(split.model):
        list(local_importance(split, dictionary, texts, method=made(name)))
    with torch.no_grad():
        split.model.model.bert.encoder.layer[2].output.dense.bias[0] = float("nan")
        with unchanged(split.model), pytest.raises(ModelOutputError, match=r"NaN or infinity for text \d: "):
            list(local_importance(split, dictionary, texts, method=made(name), allow_mismatch=True))


def writer() -> TextModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=2, n_positions=64, initializer_range=0.4)
    return TextModel(GPT2LMHeadModel(config).eval(), word_tokenizer(bos=False), name="writer")


@every_method
def test_next_tokens_of_a_decoder(name: str) -> None:
    model = writer()
    split = ModelWithSplitPoints(model, [1])
    prompts, written = ["the food was", "we loved the"], [" great and cold", " soup ."]
    dictionary = sae(split, [p + w for p, w in zip(prompts, written, strict=True)])
    found = list(local_importance(split, dictionary, prompts, method=made(name), targets=written))
    assert [len(local.targets) for local in found] == [3, 2]
    overall = concept_importance(split, dictionary, prompts, method=made(name), targets=written, progress=False)
    assert overall.classes == ("continuation",)
    assert overall.n_texts == (5,)
    contrasted = list(
        local_importance(split, dictionary, prompts[:1], method=made(name), targets=[" great"], contrast=[" bad"])
    )
    assert contrasted[0].totals.shape == (1, 6)
    if name == "ablation":
        _decoder_by_hand(model, dictionary, prompts[0] + written[0], found[0])


def _decoder_by_hand(model: TextModel, dictionary: ConceptDictionary, text: str, local: LocalImportance) -> None:
    ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
    start = ids.shape[1] - 3

    def logits(shares: torch.Tensor) -> torch.Tensor:
        def replace(_m: object, _a: object, output: torch.Tensor) -> torch.Tensor:
            codes = dictionary.encode(output[0])
            return output + (dictionary.decode(codes * shares) - dictionary.decode(codes))[None]

        handle = model.model.transformer.h[1].register_forward_hook(replace)
        with torch.no_grad():
            found = model.model(input_ids=ids[:, :-1]).logits[0]
        handle.remove()
        return found[torch.arange(start - 1, ids.shape[1] - 1), ids[0, start:]]

    full = logits(torch.ones(6))
    for i in range(6):
        expected = full - logits(1.0 - torch.eye(6)[i])
        np.testing.assert_allclose(local.totals[:, i], expected.numpy(), atol=2e-5)


@every_method
def test_labels_of_tokens(name: str, texts: list[str]) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, num_labels=3
    )
    model = TextModel(BertForTokenClassification(config).eval(), word_tokenizer(), name="tagger")
    split = ModelWithSplitPoints(model, [1])
    dictionary = sae(split, texts)
    found = list(local_importance(split, dictionary, texts, method=made(name)))
    assert all(len(local.targets) == len(local.spans) for local in found)
    assert concept_importance(split, dictionary, texts, method=made(name), progress=False).classes == model.labels


@every_method
def test_the_encoder_of_an_encoder_decoder(name: str) -> None:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=2,
        decoder_start_token_id=0, initializer_factor=4.0,
    )  # fmt: skip
    model = TextModel(T5ForConditionalGeneration(config).eval(), word_tokenizer(), name="t5")
    split = ModelWithSplitPoints(model, [0])
    sources, written = ["the food was great", "we loved the soup"], ["very good", "fine"]
    dictionary = sae(split, sources, 0)
    found = list(local_importance(split, dictionary, sources, method=made(name), targets=written))
    assert [len(local.spans) for local in found] == [4, 4]
    assert any(np.abs(local.totals).max() > 1e-4 for local in found)
    if name == "shapley":
        without = list(local_importance(split, dictionary, sources, method=Ablation(), targets=written))
        assert all(local.totals.shape == other.totals.shape for local, other in zip(found, without, strict=True))


def test_rows_that_are_not_means(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    dictionary = PCAConcepts(n_concepts=3).fit(split.get_activations(texts, granularity="word")[1], progress=False)
    mean = concept_importance(split, dictionary, texts, progress=False)
    for aggregation in ("sum", "first", "last"):
        dictionary.provenance["aggregation"] = aggregation
        found = concept_importance(split, dictionary, texts, progress=False)
        assert found.values.shape == mean.values.shape
    dictionary.provenance["aggregation"] = "max"
    # Where every word is one token all aggregations are the same.
    np.testing.assert_allclose(concept_importance(split, dictionary, texts, progress=False).values, mean.values)
    dictionary.provenance["granularity"] = "sample"
    with pytest.raises(InputError, match="rows that are the 'max' of their tokens do not say which token"):
        concept_importance(split, dictionary, texts, progress=False)


def played(method: VariantMethod, game: Callable[[Floats], Floats], n: int) -> Floats:
    """Drive a method's generator on a game of shares, shape (variants, n) to (variants,)."""
    steps = method.steps(n, game(np.ones((1, n))), np.random.default_rng(0))
    try:
        masks = next(steps)
        while True:
            masks = steps.send(game(masks.astype(np.float64))[:, None])
    except StopIteration as stop:
        return stop.value[0]


def test_total_indices_of_an_additive_score_are_known() -> None:
    weights = np.asarray([3.0, -1.0, 0.5, 0.0])
    found = played(Sobol(n_designs=2048), lambda m: m @ weights, 4)
    np.testing.assert_allclose(found, weights**2 / (weights**2).sum(), atol=0.02)


def test_total_indices_of_a_product_are_known() -> None:
    """x·y on the unit square: total indices of both are (1/9 − 1/12·…)/(1/9 − 1/16) = 4/7."""
    found = played(Sobol(n_designs=4096), lambda m: m[:, 0] * m[:, 1], 3)
    np.testing.assert_allclose(found, [4 / 7, 4 / 7, 0.0], atol=0.02)


def test_a_score_that_does_not_vary_has_no_indices() -> None:
    assert not played(Sobol(), lambda m: np.full(len(m), 7.0), 3).any()


def test_permutations_estimate_shapley_values_without_bias() -> None:
    rng = np.random.default_rng(1)
    pairs = rng.standard_normal((9, 9))

    def game(masks: Floats) -> Floats:
        return np.einsum("vi,ij,vj->v", masks, pairs, masks)

    exact = played(Shapley(exact_up_to=9), game, 9)
    symmetric = (pairs + pairs.T) / 2
    np.testing.assert_allclose(exact, symmetric.sum(axis=1), atol=1e-9)
    # Of a game of pairs an order and its reverse give the values exactly.
    np.testing.assert_allclose(played(Shapley(exact_up_to=0, n_permutations=1), game, 9), exact, atol=1e-9)


def test_what_cannot_be_asked_is_refused(
    ready: tuple[ModelWithSplitPoints, ConceptDictionary], texts: list[str]
) -> None:
    split, dictionary = ready
    with pytest.raises(UnknownNameError, match="unknown concept importance method 'magic'; known: 'ablation'"):
        local_importance(split, dictionary, texts, method="magic")
    with pytest.raises(InputError, match="n_points must be a whole number of at least 1, not 0"):
        IntegratedGradients(n_points=0)
    with pytest.raises(InputError, match="n_designs must be a power of two, as 16, 32 or 64, not 24"):
        Sobol(n_designs=24)
    with pytest.raises(InputError, match="token_budget must be a whole number"):
        local_importance(split, dictionary, texts, token_budget=0)
    with pytest.raises(InputError, match="give a list of texts, not one string"):
        local_importance(split, dictionary, "the food")


def test_a_real_sorting_model(shared: Path) -> None:
    folder = shared / "models" / "gpt_nano_sort" / "hf"
    model = TextModel(
        AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), name="sort"
    )
    split = ModelWithSplitPoints(model, [1])
    inputs = ["C B A B C A", "A A B B C C", "C C C B B B", "B A C B A C"]
    answers = [" " + " ".join(sorted(each.split())) for each in inputs]
    dictionary = PCAConcepts(n_concepts=6).fit(
        split.get_activations([a + b[:-2] for a, b in zip(inputs, answers, strict=True)])[1], progress=False
    )
    found = list(local_importance(split, dictionary, inputs, method=Shapley(), targets=answers))
    for local in found:
        assert len(local.targets) == 6
        assert (local.scores > 0).all()
    ablated = concept_importance(split, dictionary, inputs, method="ablation", targets=answers, progress=False)
    assert np.abs(ablated.values).max() > 0.5
