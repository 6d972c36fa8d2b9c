"""What a dictionary leaves of the model: laws, and the same forward passes by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForTokenClassification, GPT2Config, GPT2LMHeadModel

from interpreto_mlops.concepts import ModelWithSplitPoints, PCAConcepts, TopKSAEConcepts
from interpreto_mlops.concepts import metrics as m
from interpreto_mlops.errors import DataError, InputError, IntegrityError, ModelOutputError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import word_tokenizer

MakeModel = Callable[..., TextModel]
NAMES = {
    f"effect/{name}" for name in ("agreement", "kl", "kl_recovered", "ce_increase", "ce_recovered", "logit_recovered")
}


@pytest.fixture
def writer() -> TextModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64,
        n_embd=32,
        n_layer=3,
        n_head=2,
        n_positions=64,
        initializer_range=0.4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return TextModel(GPT2LMHeadModel(config).eval(), word_tokenizer(bos=False), name="writer")


def whole(split: ModelWithSplitPoints, texts: list[str], layer: int = 1, **options: str) -> PCAConcepts:
    """A dictionary that keeps everything."""
    rows = split.get_activations(texts, **options)[layer]
    return PCAConcepts(n_concepts=min(rows.width, len(rows))).fit(rows, progress=False)


def nothing(dictionary: PCAConcepts) -> PCAConcepts:
    """The same, forgetting all but the mean."""
    dictionary.weights["encoder"] = torch.zeros_like(dictionary.weights["encoder"])
    return dictionary


@pytest.mark.parametrize("granularity", ["token", "all_tokens", "word", "sentence", "sample"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_what_keeps_everything_changes_nothing(
    architecture: str, granularity: str, tiny_model: MakeModel, texts: list[str]
) -> None:
    split = ModelWithSplitPoints(tiny_model(architecture), [1])
    dictionary = whole(split, texts * 8, granularity=granularity)
    values = m.evaluate_effect(split, dictionary, texts)
    assert set(values) == NAMES
    assert values["effect/agreement"] == 1.0
    assert values["effect/kl"] == pytest.approx(0.0, abs=1e-6)
    assert values["effect/ce_increase"] == pytest.approx(0.0, abs=1e-4)
    assert values["effect/ce_recovered"] == pytest.approx(1.0, abs=0.02)


def test_what_keeps_the_mean_alone_is_the_ablation(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    dictionary = nothing(whole(split, texts))
    values = m.evaluate_effect(split, dictionary, texts)
    assert values["effect/ce_recovered"] == pytest.approx(0.0, abs=1e-3)
    assert values["effect/kl_recovered"] == pytest.approx(0.0, abs=1e-3)
    assert values["effect/logit_recovered"] == pytest.approx(0.0, abs=1e-3)
    assert m.evaluate_effect(split, dictionary, texts, baseline="zero")["effect/ce_recovered"] != pytest.approx(
        0.0, abs=1e-3
    )


def test_a_decoder_by_hand(writer: TextModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(writer, [1])
    rows = split.get_activations(texts)[1].tensor()
    dictionary = TopKSAEConcepts(n_concepts=16, k=2, n_epochs=5).fit(rows, progress=False)
    mean = rows.mean(dim=0)
    totals = {"clean": [], "replaced": [], "ablated": []}
    kl, same = [], []
    for text in texts:
        ids = torch.tensor([writer.tokenizer(text)["input_ids"]])
        logs = {}
        for name, remake in (
            ("clean", lambda a: a),
            ("replaced", lambda a: dictionary.decode(dictionary.encode(a))),
            ("ablated", lambda a: mean.expand_as(a)),
        ):
            handle = writer.model.transformer.h[1].register_forward_hook(
                lambda _m, _a, out, f=remake: (
                    (f(out[0][0])[None], *out[1:]) if isinstance(out, tuple) else f(out[0])[None]
                )
            )
            with torch.no_grad():
                logs[name] = writer.model(ids).logits[0, :-1].double().log_softmax(-1)
            handle.remove()
            totals[name].append(-logs[name].gather(1, ids[0, 1:, None])[:, 0])
        kl.append((logs["clean"].exp() * (logs["clean"] - logs["replaced"])).sum(1))
        same.append(logs["clean"].argmax(1) == logs["replaced"].argmax(1))
    ce = {name: float(torch.cat(parts).mean()) for name, parts in totals.items()}
    values = m.evaluate_effect(split, dictionary, texts, token_budget=7)
    assert values["effect/ce_increase"] == pytest.approx(ce["replaced"] - ce["clean"], abs=1e-5)
    assert values["effect/ce_recovered"] == pytest.approx(
        (ce["ablated"] - ce["replaced"]) / (ce["ablated"] - ce["clean"]), rel=1e-3
    )
    assert values["effect/kl"] == pytest.approx(float(torch.cat(kl).mean()), rel=1e-4)
    assert values["effect/agreement"] == pytest.approx(float(torch.cat(same).double().mean()))


@pytest.mark.parametrize("granularity", ["token", "cls", "word"])
def test_a_classifier_by_hand(granularity: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    activations = split.get_activations(texts, granularity=granularity)[1]
    dictionary = PCAConcepts(n_concepts=2).fit(activations, progress=False)
    mean = activations.tensor().mean(dim=0)

    def run(text: str, remake: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        def change(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
            # One token a word here: rows are the tokens between [CLS] and [SEP], or [CLS] alone.
            kept = slice(0, 1) if granularity == "cls" else slice(1, -1)
            new = output.clone()
            new[0, kept] = remake(output[0, kept])
            return new

        handle = model.model.bert.encoder.layer[1].register_forward_hook(change)
        with torch.no_grad():
            logits = model.model(**model.tokenizer(text, return_tensors="pt")).logits[0]
        handle.remove()
        return logits

    clean, replaced, ablated = (
        torch.stack([run(text, remake) for text in texts])
        for remake in (lambda a: a, lambda a: dictionary.decode(dictionary.encode(a)), lambda a: mean.expand_as(a))
    )
    values = m.evaluate_effect(split, dictionary, texts, token_budget=30)
    given = (clean, replaced, ablated, clean.argmax(1))
    assert not torch.allclose(clean, replaced, atol=1e-2)
    for name in NAMES:
        assert values[name] == pytest.approx(m.METRICS.get(name)(*given), rel=1e-3, abs=1e-5), name  # type: ignore[operator]


def test_labels_of_tokens_by_hand(texts: list[str]) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, num_labels=4, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=32, initializer_range=0.3,
    )  # fmt: skip
    model = TextModel(BertForTokenClassification(config).eval(), word_tokenizer(), name="tagger")
    split = ModelWithSplitPoints(model, [0])
    dictionary = nothing(whole(split, texts, layer=0))
    mean = split.get_activations(texts)[0].tensor().mean(dim=0)

    def change(_module: object, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        new = output.clone()
        new[0, 1:-1] = mean
        return new

    clean, replaced = [], []
    for text in texts:
        inputs = model.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            clean.append(model.model(**inputs).logits[0, 1:-1])
            handle = model.model.bert.encoder.layer[0].register_forward_hook(change)
            replaced.append(model.model(**inputs).logits[0, 1:-1])
        handle.remove()
    given = (torch.cat(clean), torch.cat(replaced), torch.cat(replaced), torch.cat(clean).argmax(1))
    values = m.evaluate_effect(split, dictionary, texts)
    assert m.kl(*given) > 0.05
    assert values["effect/kl"] == pytest.approx(m.kl(*given), rel=1e-3)
    assert values["effect/agreement"] == m.agreement(*given)
    assert values["effect/ce_increase"] == pytest.approx(m.ce_increase(*given), rel=1e-3)


def test_texts_that_nothing_replaces_are_left_out(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    dictionary = PCAConcepts(n_concepts=2).fit(split.get_activations(texts)[1], progress=False)
    alone = m.evaluate_effect(split, dictionary, texts)
    assert m.evaluate_effect(split, dictionary, ["", *texts, ""]) == pytest.approx(alone, abs=1e-6)
    with pytest.raises(DataError, match="none of the texts has both 'token' rows and something"):
        m.evaluate_effect(split, dictionary, ["", ""])


def test_what_the_logits_do_not_see_cannot_be_recovered(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [2])  # the classifier reads the first token alone
    dictionary = PCAConcepts(n_concepts=2).fit(split.get_activations(texts)[2], progress=False)
    with pytest.warns(UserWarning, match="ablating the 'token' rows of 'bert.encoder.layer.2' changes nothing"):
        values = m.evaluate_effect(split, dictionary, texts)
    assert (values["effect/agreement"], values["effect/kl"]) == (1.0, 0.0)
    assert all(np.isnan(values[f"effect/{name}_recovered"]) for name in ("ce", "kl", "logit"))


def test_the_sums_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = [3 * torch.randn(40, 7, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    targets = torch.arange(40) % 7
    values = {name: m.METRICS.get(name)(*logits, targets) for name in NAMES}  # type: ignore[operator]
    monkeypatch.setattr("interpreto_mlops.concepts.metrics.effect._BLOCK_LOGITS", 3 * 7)
    for name, value in values.items():
        assert m.METRICS.get(name)(*logits, targets) == pytest.approx(value, rel=1e-12)  # type: ignore[operator]


def test_labels_are_the_right_answers(tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    dictionary = PCAConcepts(n_concepts=2).fit(split.get_activations(texts)[1], progress=False)
    with torch.no_grad():
        logits = torch.cat([model.model(**model.inputs([e])).logits for e in model.encode(texts)])
    own = logits.argmax(1).tolist()
    assert m.evaluate_effect(split, dictionary, texts, labels=own) == m.evaluate_effect(split, dictionary, texts)
    wrong = [(label + 1) % 3 for label in own]
    assert m.evaluate_effect(split, dictionary, texts, labels=wrong) != m.evaluate_effect(split, dictionary, texts)


def test_batches_change_nothing_and_the_model_stays(tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    model.model.train()
    split = ModelWithSplitPoints(model, [1])
    dictionary = PCAConcepts(n_concepts=2).fit(split.get_activations(texts)[1], progress=False)
    together, apart = (m.evaluate_effect(split, dictionary, [*texts, ""], token_budget=b) for b in (10_000, 1))
    assert together == pytest.approx(apart, abs=1e-5)
    assert model.model.training
    assert not any(module._forward_hooks for module in model.model.modules())


def test_metrics_of_logits_are_pure_functions() -> None:
    clean = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    targets = torch.tensor([0, 1])
    assert m.agreement(clean, -clean, clean, targets) == 0.0
    assert m.kl(clean, clean, -clean, targets) == 0.0
    assert m.ce_recovered(clean, clean, -clean, targets) == 1.0
    assert m.ce_recovered(clean, -clean, -clean, targets) == 0.0
    assert m.logit_recovered(clean, 0 * clean, -clean, targets) == pytest.approx(0.5)
    assert np.isnan(m.ce_recovered(clean, -clean, clean, targets))
    assert m.ce_increase(clean, 0 * clean, -clean, targets) == pytest.approx(
        np.log(2) - np.mean([np.log1p(np.exp(-2)), np.log1p(np.exp(-1))])
    )
    with pytest.raises(InputError, match="do not belong together"):
        m.kl(clean, clean[:1], clean, targets)


def test_what_cannot_be_measured_is_refused(tiny_model: MakeModel, texts: list[str], writer: TextModel) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    dictionary = PCAConcepts(n_concepts=2).fit(split.get_activations(texts)[1], progress=False)
    with pytest.raises(UnknownNameError, match="unknown baseline 'noise'; known: 'mean', 'zero'"):
        m.evaluate_effect(split, dictionary, texts, baseline="noise")
    with pytest.raises(InputError, match="labels must be class ids from 0 to 2"):
        m.evaluate_effect(split, dictionary, texts, labels=[3] * len(texts))
    with pytest.raises(InputError, match="give a label for each text, not 1"):
        m.evaluate_effect(split, dictionary, texts, labels=[0])
    other = ModelWithSplitPoints(tiny_model("bert", seed=5), [1])
    with pytest.raises(IntegrityError, match="another one"):
        m.evaluate_effect(other, dictionary, texts)
    assert set(m.evaluate_effect(other, dictionary, texts, allow_mismatch=True)) == NAMES
    with torch.no_grad():
        split.model.model.classifier.bias[0] = float("nan")
    with pytest.raises(ModelOutputError, match="NaN or infinity for text 1"):
        m.evaluate_effect(split, dictionary, ["", *texts[:1]], allow_mismatch=True)


def test_rows_that_are_no_means_are_refused(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    largest = split.get_activations(texts * 2, granularity="word", aggregation="max")[1]
    dictionary = PCAConcepts(n_concepts=2).fit(largest, progress=False)
    with pytest.raises(InputError, match="rows that are the 'max' of their tokens cannot be put back"):
        m.evaluate_effect(split, dictionary, texts)
    # A row that is one token is the same by any aggregation.
    tokens = split.get_activations(texts, granularity="token", aggregation="max")[1]
    plain = split.get_activations(texts, granularity="token")[1]
    effects = [
        m.evaluate_effect(split, PCAConcepts(n_concepts=2).fit(rows, progress=False), texts) for rows in (tokens, plain)
    ]
    assert effects[0] == effects[1]
