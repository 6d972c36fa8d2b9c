"""Explanations of the labels of tokens, and of classifiers of pairs, against plain calls of the model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForTokenClassification,
    GPT2Config,
    GPT2ForTokenClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForTokenClassification,
)

from interpreto_mlops.attributions import AttributionSet, IntegratedGradients, KernelShap, Occlusion
from interpreto_mlops.attributions.metrics import Comprehensiveness, Deletion, Insertion, Sufficiency
from interpreto_mlops.errors import InputError, TextWarning, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from tests.attributions.games import shapley, toy
from tests.conftest import word_tokenizer

METHODS = (Occlusion, KernelShap, IntegratedGradients)
NAMES = {0: "O", 1: "B-PER", 2: "I-PER"}
TEXTS = ("the waiter was very slow", "awful soup", "we loved it , but the place was cold and the service slow .")
MASK = 4


def build(architecture):
    small = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48}
    common = {"vocab_size": 64, "id2label": NAMES}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture == "bert":
            network = BertForTokenClassification(BertConfig(**common, **small, max_position_embeddings=32))
        elif architecture == "roberta":
            config = RobertaConfig(**common, **small, max_position_embeddings=40, pad_token_id=0, type_vocab_size=1)
            network = RobertaForTokenClassification(config)
        elif architecture == "distilbert":
            config = DistilBertConfig(
                **common, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=32
            )
            network = DistilBertForTokenClassification(config)
        else:
            config = GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=32, pad_token_id=0)
            network = GPT2ForTokenClassification(config)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(6.0)
    return network.eval()


@pytest.fixture
def tagger():
    return lambda architecture="bert": TextModel(build(architecture), word_tokenizer(bos=architecture != "gpt2"))


def logits_of(model, ids):
    with torch.no_grad():
        ids = torch.tensor([ids])
        return model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double().numpy()


def close(a, b, tolerance=1e-5):
    np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(initial=1.0))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2"])
def test_without_targets_each_elements_predicted_label_is_explained(tagger, architecture):
    model = tagger(architecture)
    for item in Occlusion(model)(TEXTS):
        ids = model.tokenizer(item.text)["input_ids"]
        first = 0 if architecture == "gpt2" else 1
        logits = logits_of(model, ids)[first : first + len(item.elements)]
        assert [t.id for t in item.targets] == logits.argmax(axis=1).tolist()
        assert [t.name for t in item.targets] == [
            f"{word}: {NAMES[label]}" for word, label in zip(item.elements, logits.argmax(axis=1), strict=True)
        ]
        close(item.output, logits.max(axis=1))
        for j in range(len(item.elements)):
            without = [MASK if place == j + first else token for place, token in enumerate(ids)]
            changed = logits_of(model, without)[first : first + len(item.elements)]
            close(item.scores[:, j], item.output - changed[range(len(changed)), logits.argmax(axis=1)])


@pytest.mark.parametrize("kind", ["linear", "tanh", "random"])
def test_kernel_shap_equals_shapley_values_of_every_label(kind):
    model = toy(kind, word_tokenizer(bos=False), task="token_classification")
    text = "the food was good"
    ids = model.tokenizer(text)["input_ids"]
    item = KernelShap(model)([text], targets=[[(k, label) for k in range(4) for label in range(3)]])[0]

    def v(present):
        return logits_of(model, [i if place in present else MASK for place, i in enumerate(ids)]).ravel()

    np.testing.assert_allclose(item.scores, shapley(v, 4).T, atol=1e-12)


def test_integrated_gradients_of_every_label_are_complete():
    model = toy("tanh", word_tokenizer(bos=False), task="token_classification")
    for item in IntegratedGradients(model, n_nodes=32)(list(TEXTS)):
        np.testing.assert_allclose(item.scores.sum(axis=1), item.output - item.baseline_output, atol=1e-8)


@pytest.mark.parametrize("mode", ["logits", "softmax", "log_softmax"])
def test_a_span_of_several_elements_has_the_sum_or_product_of_them(tagger, mode):
    model = tagger()
    text = "the waiter was very slow"
    span = (4, 14)  # waiter was
    item = Occlusion(model, inference_mode=mode)([text], targets=[[(span, "B-PER"), (1, 1), (2, "B-PER")]])[0]
    assert [t.name for t in item.targets] == ["waiter was: B-PER", "waiter: B-PER", "was: B-PER"]
    assert item.targets[0].positions == (2, 3)
    whole, a, b = item.output
    assert whole == pytest.approx(a * b if mode == "softmax" else a + b, abs=1e-5)
    if mode != "softmax":
        close(item.scores[0], item.scores[1] + item.scores[2])


@pytest.mark.parametrize("method", METHODS)
def test_one_label_for_all_elements_and_contrasts(method):
    model = toy("tanh", word_tokenizer(bos=False), task="token_classification")
    model.model.config.id2label = NAMES
    options = {"n_nodes": 8} if method is IntegratedGradients else {}
    a, b = (method(model, **options)(["the food was"], targets=label)[0] for label in ("B-PER", 2))
    assert [t.name for t in b.targets] == ["the: I-PER", "food: I-PER", "was: I-PER"]
    both = method(model, **options)(["the food was"], targets="B-PER", contrast="I-PER")[0]
    np.testing.assert_allclose(both.scores, a.scores - b.scores, atol=1e-10)
    assert both.targets[1].title == "food: B-PER rather than I-PER"
    each = method(model, **options)(["the food was"], targets=[[(0, 1), (2, 0)]], contrast=[[2, 1]])[0]
    zero = method(model, **options)(["the food was"], targets=0)[0]
    np.testing.assert_allclose(each.scores[0], a.scores[0] - b.scores[0], atol=1e-10)
    np.testing.assert_allclose(each.scores[1], zero.scores[2] - a.scores[2], atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
def test_probabilities_of_all_labels_sum_to_one_so_their_scores_to_nothing(method):
    model = toy("tanh", word_tokenizer(bos=False), task="token_classification")
    options = {"n_nodes": 16} if method is IntegratedGradients else {}
    targets = [[(k, label) for k in range(3) for label in range(3)]]
    item = method(model, inference_mode="softmax", **options)(["the food was"], targets=targets)[0]
    np.testing.assert_allclose(item.scores.reshape(3, 3, 3).sum(axis=1), 0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert", "gpt2"])
def test_a_text_alone_is_a_text_in_a_batch(tagger, architecture, method):
    options = {KernelShap: {"n_perturbations": 40}, IntegratedGradients: {"n_nodes": 3, "tolerance": 1e9}}
    model, alone = tagger(architecture), tagger(architecture)
    alone.engine.token_budget = 1
    together, singles = (method(each, **options.get(method, {}))(TEXTS) for each in (model, alone))
    backwards = method(model, **options.get(method, {}))(TEXTS[::-1])[::-1]
    for a, b, c in zip(together, backwards, singles, strict=True):
        close(a.scores, c.scores)
        close(b.scores, c.scores)


def test_a_word_of_several_tokens_has_the_label_of_its_first(shared):
    from transformers import BertTokenizerFast

    folder = shared / "models" / "tokenizers" / "bert-base-uncased"
    if not folder.is_dir():
        pytest.skip(f"BERT's vocabulary is not there: no folder {folder}")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    torch.manual_seed(0)
    small = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
    network = BertForTokenClassification(BertConfig(vocab_size=len(tokenizer), id2label=NAMES, **small)).eval()
    item = Occlusion(TextModel(network, tokenizer))(["unbelievably scrumptious minestrone"])[0]
    assert item.elements == ("unbelievably", "scrumptious", "minestrone")
    first = [item.of_token.tolist().index(k) for k in range(3)]
    assert len(item.ids) > 2 + 3
    assert [t.positions for t in item.targets] == [(place,) for place in first]
    logits = logits_of(TextModel(network, tokenizer), item.ids.tolist())
    close(item.output, logits[first].max(axis=1))


def test_removing_is_refused_for_labels_of_tokens(tagger):
    with pytest.raises(InputError, match="'remove' leaves tokens without a place for their label"):
        Occlusion(tagger(), replacement="remove")(TEXTS)


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        (3, InputError, r"there is no class 3; .* 0 \(O\), 1 \(B-PER\), 2 \(I-PER\)"),
        ("PER", UnknownNameError, "unknown class 'PER'; known: 'O', 'B-PER'"),
        ([[(0, "B-PER"), (9, 1)]], InputError, "text 0 has no element 9; it has 2"),
        ([[(-1, 1)]], InputError, "text 0 has no element -1"),
        ([[((50, 60), 1)]], InputError, "no element of text 0 lies in the characters 50 to 60"),
        ([[("food", 1)]], InputError, r"a target of text 0 must be a label, or a pair .*not \('food', 1\)"),
        ([[((1, 2, 3), 1)]], InputError, r"not \(\(1, 2, 3\), 1\)"),
        ([[(None, 1)]], InputError, r"not \(None, 1\)"),
        ([[(True, 1)]], InputError, r"not \(True, 1\)"),
        ([[(0, 1.5)]], InputError, "must be a class id or label, not 1.5"),
        ([[0, 1]], InputError, "must be a label, or a pair .*not 0"),
        ([[]], InputError, "text 0 was given an empty list of targets"),
        ([1, 2], InputError, "2 targets were given for 1 texts"),
    ],
)
def test_wrong_targets_are_refused_before_the_model_runs(tagger, targets, error, words):
    model = tagger()
    with pytest.raises(error, match=words):
        Occlusion(model)(["good food"], targets=targets)
    assert model.engine.counters.batches == 0


def test_contrasts_are_counted_before_the_model_runs(tagger):
    model = tagger()
    with pytest.raises(InputError, match="text 0 has 2 targets and 3 contrasts"):
        Occlusion(model)(["good food"], contrast=[[0, 1, 2]])
    assert model.engine.counters.batches == 0


@pytest.mark.parametrize("label", ["B-PER", "odd: label"])
def test_results_are_kept_and_scored(tagger, tmp_path, label):
    model = tagger()
    model.model.config.id2label = {**NAMES, 1: label}
    with pytest.warns(TextWarning, match="text 3 has nothing to attribute"):
        explanations = Occlusion(model)([*TEXTS, ""], targets=label)
    loaded = AttributionSet.load(explanations.save(tmp_path))
    assert loaded == explanations
    result = Deletion(model)(loaded)
    assert result.skipped == {"no elements": 1}
    assert np.isfinite(result.values[:3]).all()


# Pairs of texts for a sequence classifier


def pair_tokenizer():
    words = "the food was great it is good not awful soup a place".split()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*specials, *words])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=24,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **names,
    )


@pytest.fixture
def pair_model():
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    network = BertForSequenceClassification(
        BertConfig(vocab_size=32, num_labels=3, max_position_embeddings=24, **small)
    )
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6.0)
    return TextModel(network.eval(), pair_tokenizer(), name="pairs")


PAIRS = [("the food was great", "it is good"), ("awful soup", "not a good place"), ("soup", "soup")]


def test_both_texts_of_a_pair_have_players_and_their_segments_stay(pair_model):
    for pair, item in zip(PAIRS, KernelShap(pair_model)(PAIRS), strict=True):
        words = [*pair[0].split(), *pair[1].split()]
        assert item.elements == tuple(words)
        assert [item.text[a:b] for a, b in item.spans] == words
        assert item.text == "\n".join(pair)
        assert item.boundary == len(pair[0]) + 1
        batch = pair_model.tokenizer(*pair, return_tensors="pt")
        places = [k for k, i in enumerate(batch["input_ids"][0].tolist()) if i not in (2, 3)]
        assert item.ids.tolist() == batch["input_ids"][0].tolist()

        def v(present, batch=batch, places=places, label=item.targets[0].id):
            ids = batch["input_ids"].clone()
            for player, place in enumerate(places):
                if player not in present:
                    ids[0, place] = MASK
            with torch.no_grad():
                return pair_model.model(**{**batch, "input_ids": ids}).logits[0, label].double().item()

        close(item.scores[0], shapley(v, len(words)))


@pytest.mark.parametrize("method", METHODS)
def test_a_pair_alone_is_a_pair_among_pairs_and_single_texts(pair_model, method):
    options = {"n_nodes": 4, "tolerance": 1e9} if method is IntegratedGradients else {}
    mixed = [PAIRS[0], "the food was great", PAIRS[1], "awful soup"]
    for text, item in zip(mixed, method(pair_model, **options)(mixed), strict=True):
        close(item.scores, method(pair_model, **options)([text])[0].scores)


@pytest.mark.parametrize("metric", [Insertion, Deletion, Comprehensiveness, Sufficiency])
def test_metrics_of_pairs_read_both_texts_again(pair_model, metric, tmp_path):
    explanations = Occlusion(pair_model)(PAIRS)
    loaded = AttributionSet.load(explanations.save(tmp_path))
    assert loaded == explanations
    result = metric(pair_model)(loaded)
    assert np.isfinite(result.values).all()
    if metric is Deletion:
        assert result.values[0] == pytest.approx(slow_deletion(pair_model, PAIRS[0], explanations[0]), abs=1e-5)


def slow_deletion(model, pair, item):
    batch = model.tokenizer(*pair, return_tensors="pt")
    places = [k for k, i in enumerate(batch["input_ids"][0].tolist()) if i not in (2, 3)]
    values, ids = [], batch["input_ids"].clone()
    for j in [None, *np.argsort(-item.scores[0], kind="stable").tolist()]:
        if j is not None:
            ids[0, places[j]] = MASK
        with torch.no_grad():
            logits = model.model(**{**batch, "input_ids": ids}).logits[0]
        values.append(logits.softmax(-1)[item.targets[0].id].item())
    return sum((a + b) / 2 for a, b in itertools.pairwise(values)) / len(places)


def test_a_sentence_does_not_reach_over_both_texts(pair_model):
    item = Occlusion(pair_model, granularity="sentence")([PAIRS[0]])[0]
    assert item.elements == PAIRS[0]


def test_a_pair_that_is_too_long_is_cut_and_says_so(pair_model):
    with pytest.warns(TextWarning, match="text 0 is longer than 24 tokens"):
        item = Occlusion(pair_model)([("the food " * 10, "it is " * 10)])[0]
    assert item.truncated
    assert len(item.ids) == 24
    assert [item.text[a:b] for a, b in item.spans] == list(item.elements)


@pytest.mark.parametrize("wrong", [("a", 3), ("a", "b", "c"), ("a",), ["a", "b"]])
def test_what_is_no_pair_of_texts_is_named(pair_model, wrong):
    with pytest.raises(InputError, match="text 1 is not a string"):
        Occlusion(pair_model)(["the food", wrong])
    assert pair_model.engine.counters.batches == 0
