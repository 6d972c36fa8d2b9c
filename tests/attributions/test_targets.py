"""What is asked about a text: targets and their places, elements that matter to them, and questions asked again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from interpreto_mlops.attributions import AttributionSet, Occlusion
from interpreto_mlops.attributions.game import Game
from interpreto_mlops.attributions.recall import recalled
from interpreto_mlops.errors import InputError, TextWarning, UnknownNameError
from interpreto_mlops.models.objectives import InferenceMode
from interpreto_mlops.models.replacement import Replacement
from interpreto_mlops.models.requests import ScoreRequest
from interpreto_mlops.models.targets import label_id, questions
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.granularity import Granularity
from interpreto_mlops.tracking.attribution_evidence import attribution_params
from tests.attributions.language_models import EOS, language_model
from tests.attributions.test_token_classification import build as build_tagger
from tests.conftest import build as build_classifier
from tests.conftest import word_tokenizer

TEXTS = ["the food was great", "awful soup", "never again !"]


@pytest.fixture
def model():
    return TextModel(build_classifier("bert"), word_tokenizer(), name="tiny")


@pytest.mark.parametrize("value", [1, np.int64(1), np.uint8(1), torch.tensor(1), np.array(1), "LABEL_1"])
def test_a_class_by_id_or_name(model, value):
    assert label_id(value, model) == 1


@pytest.mark.parametrize("value", [1.0, True, np.bool_(True), None, torch.tensor(1.0), [1], object()])
def test_what_is_no_class(model, value):
    with pytest.raises(InputError, match="a target must be a class id or label, not"):
        label_id(value, model)


def test_a_class_that_is_not_there_names_those_that_are(model):
    with pytest.raises(InputError, match=r"no class 7; the model 'tiny' has 0 \(LABEL_0\), 1 \(LABEL_1\), 2"):
        label_id(7, model)
    with pytest.raises(UnknownNameError, match="unknown class 'x'; known: 'LABEL_0'"):
        label_id("x", model)


def test_no_target_among_given_ones_is_the_models_own(model):
    mixed = Occlusion(model)(TEXTS, targets=[None, [2, 0], "LABEL_1"])
    own = Occlusion(model)(TEXTS)
    assert mixed[0].targets == own[0].targets
    assert [[t.id for t in item.targets] for item in mixed][1:] == [[2, 0], [1]]


def asked(model, text, target, granularity=Granularity.WORD, target_granularity=Granularity.TOKEN):
    (question,) = questions(model, [text], [target], target_granularity=target_granularity)
    return question, question.encoding.elements(granularity)


def test_a_continuations_targets_stand_one_place_after_they_are_read():
    model = language_model("gpt2")
    question, elements = asked(model, "the food", "was very great")
    assert [t.positions for t in question.expected] == [(1,), (2,), (3,)]
    assert [t.name for t in question.expected] == ["was", "very", "great"]
    assert elements.names == ("the", "food", "was", "very", "great")
    assert question.visible(elements).tolist() == [[True, True, *[k < t for k in range(3)]] for t in range(3)]
    assert (question.reaching(elements) == question.visible(elements)).all()
    assert question.encoding.ids.tolist() == model.tokenizer("the food was very")["input_ids"]
    assert len(question.encoding.special) == 5


def test_a_word_of_several_target_tokens_reaches_the_later_of_them_but_is_shown_for_none():
    model = language_model("gpt2")
    # Nothing separates prompt and continuation for a sentence but the border.
    question, elements = asked(model, "the food", "was very great", Granularity.SENTENCE)
    assert elements.names == ("the food", "was very great")
    assert question.visible(elements).tolist() == [[True, False]] * 3
    assert question.reaching(elements).tolist() == [[True, False], [True, True], [True, True]]
    game = Game(question, elements, Replacement.resolve("mask", model))
    assert game.n_players == 2
    assert game.of_token.tolist() == [0, 0, 1, 1]
    game.settle(np.zeros((2, question.readout.width)), InferenceMode.LOGITS)
    assert game.valid.tolist() == [[True, False], [True, True], [True, True]]
    assert np.isnan(game.matrix(np.ones((3, 2)))[:, 1]).all()


def test_targets_of_an_encoder_decoder_are_read_in_the_decoders_part():
    model = language_model("bart")
    question, elements = asked(model, "the food", "was very great")
    assert question.encoding.prompt_tokens == 2
    prompt, target = (model.tokenizer(text)["input_ids"] for text in ("the food", "was very"))
    assert question.encoding.ids.tolist() == [*prompt, EOS, *target]
    assert [t.positions for t in question.expected] == [(2,), (3,), (4,)]
    assert elements.of_token.tolist() == [0, 1, -1, 2, 3, 4]
    assert question.visible(elements).tolist() == [[True, True, *[k < t for k in range(3)]] for t in range(3)]


def test_granules_of_a_continuation():
    model = language_model("gpt2")
    target = "was great . we loved it !"
    question, _ = asked(model, "the food", target, target_granularity=Granularity.SENTENCE)
    assert [t.name for t in question.expected] == ["was great .", "we loved it !"]
    assert [t.positions for t in question.expected] == [(1, 2, 3), (4, 5, 6, 7)]
    question, _ = asked(model, "the food", target, target_granularity=Granularity.WORD)
    assert [t.name for t in question.expected] == target.split()


def test_players_may_be_the_prompt_alone():
    model = language_model("gpt2")
    question, elements = asked(model, "the food", "was very great")
    game = Game(question, elements, Replacement.resolve("mask", model), np.array([1]))
    assert game.of_token.tolist() == [-1, 0, -1, -1]
    rows = game.request(np.array([[True], [False]])).rows
    assert rows.tolist() == [
        model.tokenizer(text)["input_ids"] for text in ("the food was very", "the [MASK] was very")
    ]
    nobody = Game(question, elements, Replacement.resolve("mask", model), np.array([], dtype=np.int64))
    assert nobody.request(np.ones((1, 0), dtype=bool)).rows.tolist() == [question.encoding.ids.tolist()]


def test_the_last_word_of_a_continuation_is_no_player():
    model = language_model("gpt2")
    question, elements = asked(model, "the food", "was very great")
    game = Game(question, elements, Replacement.resolve("mask", model))
    assert game.players.tolist() == [0, 1, 2, 3]
    assert np.isnan(game.matrix(np.zeros((3, 4)))[:, 4]).all()


# From a result back to its question


def cases():
    conversation = [{"role": "user", "content": "the food ?"}]
    return {
        "classifier": (lambda: TextModel(build_classifier("bert"), word_tokenizer()), TEXTS, [[0, 2], 1, 2]),
        "tagger": (lambda: TextModel(build_tagger("bert"), word_tokenizer()), TEXTS, [[(0, 1), ((0, 99), 2)], 1, None]),
        "gpt2": (lambda: language_model("gpt2"), [*TEXTS, ""], ["very good", [5, EOS, 6], None, "was very"]),
        "bos": (lambda: language_model("llama", bos=True), [conversation, *TEXTS[:2]], "very good"),
        "bart": (lambda: language_model("bart"), TEXTS, ["very good", [5, EOS, 6], None]),
    }


@pytest.mark.parametrize("granularity", ["word", "token", "all_tokens", "sentence"])
@pytest.mark.parametrize("case", list(cases()))
def test_a_result_that_was_kept_knows_its_question(case, granularity, tmp_path):
    make, texts, targets = cases()[case]
    model = make()
    model.tokenizer.chat_template = "{% for m in messages %}[CLS] {{ m['content'] }} [SEP]{% endfor %}"
    options = {"generation": {"max_new_tokens": 3}} if model.task == "generation" else {}
    items = Occlusion(model, granularity=granularity, replacement="mask")(texts, targets=targets, **options)
    loaded = AttributionSet.load(items.save(tmp_path))
    assert loaded == items
    for item, question, elements in recalled(model, loaded):
        assert elements.names == item.elements
        assert question.encoding.ids.tolist() == item.ids.tolist()
        game = Game(question, elements, Replacement.resolve("mask", model))

        def ask(game=game):
            (read,) = yield [
                game.request(np.concatenate([np.ones((1, game.n_players)), 1 - np.eye(game.n_players)]) > 0)
            ]
            game.settle(read, InferenceMode.LOGITS)
            return game.objective.score(read)

        (scores,) = model.engine.run([ask()])
        np.testing.assert_allclose(scores[0], item.output, atol=1e-4)
        np.testing.assert_allclose(game.matrix((scores[0] - scores[1:]).T), item.scores, atol=2e-4)


def test_a_question_is_asked_of_the_task_that_was_explained(model):
    of_classes, of_words = Occlusion(model)(TEXTS), Occlusion(language_model("gpt2"))(TEXTS, targets="good")
    with pytest.raises(InputError, match="text 0 explains no continuation, and 'gpt2' is a language model"):
        list(recalled(language_model("gpt2"), of_classes))
    with pytest.raises(InputError, match="text 0 explains a continuation, which needs a language model"):
        list(recalled(model, of_words))
    tagger = TextModel(build_tagger("bert"), word_tokenizer(), name="tagger")
    with pytest.raises(InputError, match=r"text 0 explains the class 'LABEL_.', which 'tagger' lacks"):
        list(recalled(tagger, of_classes))
    with pytest.raises(InputError, match="text 0 holds token ids that 'gpt2' does not have"):
        item = dataclasses.replace(of_words[0], ids=np.array([5, 6, 9999]))
        list(recalled(language_model("gpt2"), AttributionSet([item])))


def test_a_request_of_several_readouts_gives_each_row_its_own():
    model = language_model("gpt2")
    question, _ = asked(model, "the food was", "very good")
    whole = question.encoding.ids
    kept = np.array([True, False, True, True])
    request = ScoreRequest(question.encoding, [whole, whole[kept]], [question.readout, question.readout.without(kept)])
    assert request.readout_of(1).positions == (1, 2)
    assert request.readout_of(0).positions == (2, 3)


def test_given_targets_are_told_from_predicted_ones_and_a_target_against_itself_is_said(tiny_model):
    model = tiny_model()
    assert Occlusion(model)(["good food"], targets=2)[0].parameters["targets"] == "given"
    assert "targets" not in Occlusion(model)(["good food"])[0].parameters
    with pytest.warns(TextWarning, match="text 0 is explained against its own target; those scores are 0"):
        item = Occlusion(model)(["good food"], targets=1, contrast=1)[0]
    np.testing.assert_array_equal(item.scores, 0)


def test_a_runs_parameters_name_what_was_explained_against_what(tiny_model):
    model, texts = tiny_model(), ["good food", "awful soup"]

    def asked(**call):
        params = attribution_params(Occlusion(model)(texts, **call), model)
        return params.get("method.targets"), params.get("method.contrast")

    assert asked() == (None, None)
    assert asked(targets=2, contrast="LABEL_0") == ("LABEL_2", "LABEL_0")
    assert asked(targets=[2, 2], contrast=[0, 1]) == ("LABEL_2", "several")
    assert asked(targets=[2, 1]) == ("several", None)
