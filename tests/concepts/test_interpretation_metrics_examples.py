"""Which examples are shown: laws of the choice, held against brute force on every window."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from interpreto_mlops.concepts import ActivationSet, NeuronsAsConcepts, TopKSAEConcepts
from interpreto_mlops.concepts import interpretation_metrics as m
from interpreto_mlops.concepts.interpretation_metrics import subjects
from interpreto_mlops.concepts.interpretation_metrics.detecting import marked
from interpreto_mlops.concepts.interpretation_metrics.examples import Example, Examples, of_texts
from interpreto_mlops.concepts.split import ModelWithSplitPoints
from interpreto_mlops.errors import InputError, TextWarning, UnknownNameError
from interpreto_mlops.llm import Questioner
from interpreto_mlops.models.text_model import TextModel
from tests.concepts.planted_words import NAMES, RARE, WordJudge, labels, planted, planted_model

MakeModel = Callable[..., TextModel]
CONCEPT = {word: concept for concept, word in NAMES.items()}


@pytest.fixture(scope="module")
def long() -> ActivationSet:
    """Texts of 28 words, longer than a window."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["the", "a", "was", "it", *RARE[:8]], 28)) for _ in range(60)]
    return ModelWithSplitPoints(planted_model(), [0]).get_activations(texts, progress=False)[0]


def codes_of(rows: ActivationSet, word: str) -> np.ndarray:
    return rows.tensor()[:, CONCEPT[word]].numpy()


class TestWindows:
    def test_active_ones_hold_the_word_and_inactive_ones_do_not(self, long: ActivationSet) -> None:
        source = Examples(long, window=6)
        codes, rng = codes_of(long, RARE[0]), np.random.default_rng(0)
        active = source.active(codes, 20, rng, floor=0.0, quantiles=10)
        inactive = source.inactive(codes, 20, rng, floor=0.0)
        for each in [*active, *inactive]:
            words = each.text.split()
            assert len(words) == 6
            assert each.text in long.texts[each.text_id]
            assert (RARE[0] in words) == (each in active)
            assert [each.text[a:b] for a, b in each.words.tolist()] == words
            assert (each.values > 0).tolist() == [word == RARE[0] for word in words]
        for kind in (active, inactive):
            assert len({each.text_id for each in kind}) == len(kind) == 20

    def test_a_window_that_is_longer_than_the_text_is_the_text(self, long: ActivationSet) -> None:
        (example,) = Examples(long, 1000).active(
            codes_of(long, RARE[0]), 1, np.random.default_rng(0), floor=0.0, quantiles=1
        )
        assert example.text == long.texts[example.text_id]

    def test_activation_is_the_signed_largest_of_the_window(self, long: ActivationSet) -> None:
        rng = np.random.default_rng(1)
        codes = rng.normal(size=len(long)).astype(np.float32)
        for each in Examples(long, 5).graded(codes, 60, rng, top_share=0.2):
            assert abs(each.activation) == np.abs(each.values).max()
            assert each.activation in each.values
            own = codes[long.text_ids == each.text_id]
            assert each.activation in own

    def test_the_same_seed_gives_the_same_and_another_others(self, long: ActivationSet) -> None:
        source, codes = Examples(long, 6), codes_of(long, RARE[0])
        drawn = [
            [each.text for each in source.inactive(codes, 20, np.random.default_rng(seed), floor=0.0)]
            for seed in (0, 0, 1)
        ]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_words_that_the_model_did_not_see_are_not_shown(self) -> None:
        texts = [f"{'a ' * 70}food", f"food {'the ' * 80}"]
        split = ModelWithSplitPoints(planted_model(), [0])
        with pytest.warns(TextWarning, match="was cut there"):
            rows = split.get_activations(texts, progress=False)[0]
        seen = int((rows.text_ids == 0).sum())
        assert seen < 70
        shown = Examples(rows, 200).inactive(codes_of(rows, "food"), 5, np.random.default_rng(0), floor=0.0)
        assert [len(each.text.split()) for each in shown] == [seen]


class TestStrata:
    def test_every_quantile_gives_as_many(self) -> None:
        texts = [f"it was food number {i}" for i in range(100)]
        rows = ModelWithSplitPoints(planted_model(), [0]).get_activations(texts, granularity="sample", progress=False)[
            0
        ]
        codes = np.arange(1.0, 101.0, dtype=np.float32)
        for n in (10, 25, 50, 100, 200):
            found = Examples(rows, 32).active(codes, n, np.random.default_rng(n), floor=0.0, quantiles=10)
            strata = np.bincount([int((each.activation - 1) // 10) for each in found], minlength=10)
            assert len(found) == min(n, 100) == len({each.text_id for each in found})
            assert strata.max() - strata.min() <= 1

    def test_the_top_share_is_the_top(self) -> None:
        texts = [f"it was food number {i}" for i in range(50)]
        rows = ModelWithSplitPoints(planted_model(), [0]).get_activations(texts, granularity="sample", progress=False)[
            0
        ]
        codes = np.random.default_rng(0).permutation(50).astype(np.float32)
        found = Examples(rows, 32).graded(codes, 20, np.random.default_rng(0), top_share=0.25)
        assert {each.activation for each in found[:5]} == {49.0, 48.0, 47.0, 46.0, 45.0}
        assert len({each.text_id for each in found}) == 20
        everything = Examples(rows, 32).graded(codes, 500, np.random.default_rng(0), top_share=0.1)
        assert sorted(each.activation for each in everything) == list(range(50))


class TestHardNegatives:
    def test_come_from_where_a_neighbour_is_active(self, long: ActivationSet) -> None:
        source, codes = Examples(long, 4), codes_of(long, RARE[0])
        near = codes_of(long, RARE[1]) > 0
        found = source.inactive(codes, 20, np.random.default_rng(0), floor=0.0, near=near)
        assert all(RARE[1] in each.text.split() and RARE[0] not in each.text.split() for each in found)
        nowhere = np.zeros(len(long), dtype=bool)
        filled = source.inactive(codes, 20, np.random.default_rng(0), floor=0.0, near=nowhere)
        assert len(filled) == 20

    def test_neighbours_are_the_most_similar_directions(self) -> None:
        rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
        dictionary = TopKSAEConcepts(n_concepts=16, k=3, n_epochs=2).fit(rows, progress=False)
        found = subjects.neighbours(dictionary, [3, 5], 4)
        unit = dictionary.dictionary / dictionary.dictionary.norm(dim=1, keepdim=True)
        for concept in (3, 5):
            cosines = (unit @ unit[concept]).tolist()
            similar = [c for c in range(16) if c != concept and cosines[c] > 1e-6]
            expected = sorted(similar, key=lambda c: -cosines[c])[:4]
            assert expected
            assert found[concept] == expected

    def test_a_label_that_fits_the_neighbour_too_is_found_out(self) -> None:
        """A judge that knows only `food or waiter` is right of random negatives, and wrong of hard ones."""

        class Vague(WordJudge):
            def holds(self, word: str, text: str) -> bool:
                return super().holds("food", text) or super().holds("waiter", text)

        rng = np.random.default_rng(0)
        texts = [" ".join(rng.choice(["the", "a", "was"], 4)) + f" {word}" for word in ["food", "waiter"] * 30]
        texts += [" ".join(rng.choice(["the", "a", "was"], 5)) for _ in range(200)]
        split = ModelWithSplitPoints(planted_model(), [0])
        rows = split.get_activations(texts, progress=False)[0]

        class Related(NeuronsAsConcepts):
            @property
            def dictionary(self) -> torch.Tensor:
                directions = torch.eye(64)
                directions[CONCEPT["food"], CONCEPT["waiter"]] = 0.5
                return directions

        dictionary = Related().fit(rows, progress=False)
        means = {}
        for negatives in ("random", "hard"):
            metric = m.Detection(Questioner(Vague()), negatives=negatives, n_active=25, n_inactive=25)
            means[negatives] = metric(dictionary, rows, labels(["food"])).mean
        assert means["random"] > 0.8
        assert means["hard"] == 0.5


class TestMarks:
    EXAMPLE = Example(0, "good, bad food", 1.0, np.asarray([[0, 4], [4, 5], [6, 9], [10, 14]]), np.zeros(4))

    def test_are_round_whole_words(self) -> None:
        assert marked(self.EXAMPLE, [3, 0]) == ("good, bad food", ((0, 4), (10, 14)))
        assert marked(self.EXAMPLE, []) == ("good, bad food", ())

    def test_the_threshold_is_used(self) -> None:
        split, _, rows = planted(40)
        mixed = NeuronsAsConcepts().fit(rows, progress=False)
        texts = ["food and waiter was"] * 10 + ["a the it is"] * 10

        class Weighted(NeuronsAsConcepts):
            def _encode(self, rows: torch.Tensor) -> torch.Tensor:
                codes = rows.clone()
                codes[:, CONCEPT["food"]] += 0.4 * rows[:, CONCEPT["waiter"]]
                return codes

        dictionary = Weighted().fit(rows, progress=False)
        rows = split.get_activations(texts, progress=False)[0]
        for threshold, expected in ((0.3, "«food» and «waiter» was"), (0.5, "«food» and waiter was")):
            judge = WordJudge()
            m.Fuzzing(Questioner(judge), threshold=threshold)(dictionary, rows, labels(["food"]))
            assert any(expected in prompt.user for prompt in judge.prompts)
        assert mixed.n_concepts == 64

    def test_wrong_words_are_of_the_active_examples(self) -> None:
        _, dictionary, rows = planted()
        judge = WordJudge()
        score = m.Fuzzing(Questioner(judge), wrong="wrong_words", shuffled=False)(dictionary, rows, labels(RARE[:4]))
        assert score.mean == 1.0
        for concept, judged in score.judged.items():
            assert judged.asked == 2 * int(judged.given.sum()), concept

    def test_pieces_of_words_are_one_word(self) -> None:
        """Rows of tokens that are pieces: the word is active where one of its pieces is."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        model = planted_model()
        pieces = {"[PAD]": 0, "[UNK]": 1, "foo": 5, "##d": 6, "bad": 7, "the": 8}
        tokenizer = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
        split = ModelWithSplitPoints(TextModel(model.model, fast, name="pieces"), [0])
        rows = split.get_activations(["the food the"] * 6 + ["the bad the"] * 6, progress=False)[0]
        dictionary = NeuronsAsConcepts().fit(rows, progress=False)
        judge = WordJudge()
        score = m.Fuzzing(Questioner(judge))(dictionary, rows, {6: "the word food"})
        assert any("the «food» the" in prompt.user for prompt in judge.prompts)
        assert score.mean == 1.0

    def test_rows_of_many_words_have_no_marks(self) -> None:
        _, dictionary, rows = planted(20, "sentence")
        with pytest.raises(InputError, match="the rows of these activations are 'sentence'"):
            m.Fuzzing(Questioner(WordJudge()))(dictionary, rows, labels(["food"]))


@pytest.mark.parametrize("granularity", ["token", "all_tokens", "word", "sentence", "sample"])
def test_all_granularities_find_the_planted_words(granularity: str) -> None:
    split, dictionary, rows = planted(200, granularity)
    given = labels(RARE[:5])
    scores = m.score_labels(
        Questioner(WordJudge()),
        dictionary,
        rows,
        given,
        metrics=["detection", "responsiveness", "clarity"],
        split=split,
    )
    for name, least in (("detection", 1.0), ("responsiveness", 1.0), ("clarity", 0.85)):
        assert len(scores[f"interpretation/{name}"].values) == 5
        assert scores[f"interpretation/{name}"].mean >= least


def test_special_tokens_do_not_count(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    every = split.get_activations(texts, granularity="all_tokens", progress=False)[1]
    real = split.get_activations(texts, granularity="token", progress=False)[1]
    for concept in range(5):
        text_ids, values = of_texts(every, every.tensor()[:, concept].numpy())
        codes = real.tensor()[:, concept].numpy()
        assert text_ids.tolist() == list(range(5))
        expected = [max(codes[real.text_ids == text].tolist(), key=abs) for text in range(5)]
        np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_columns_are_the_codes_however_many_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    _, dictionary, rows = planted(30)
    codes = dictionary.encode(rows).numpy()
    beside = {5: [6, 7], 9: [5], 12: []}
    for numbers in (1, 3 * len(rows), 2**24):
        monkeypatch.setattr(subjects, "_COLUMN_NUMBERS", numbers)
        found = list(subjects.columns(dictionary, rows, [5, 9, 12], beside))
        assert [concept for concept, _, _ in found] == [5, 9, 12]
        for concept, column, near in found:
            np.testing.assert_array_equal(column, codes[:, concept])
            np.testing.assert_array_equal(near, (codes[:, beside[concept]] > 0).any(axis=1))


def test_parameters_that_cannot_be_used_are_refused() -> None:
    questioner = Questioner(WordJudge())
    for kind, options, message in (
        (m.Detection, {"n_active": 0}, "n_active must be a whole number of at least 1, not 0"),
        (m.Detection, {"least": 60}, "least=60 is more than"),
        (m.Detection, {"negatives": "soft"}, "unknown kind of negatives 'soft'"),
        (m.Detection, {"active_above": -1}, "active_above must be a number from 0 to 1, not -1"),
        (m.Fuzzing, {"threshold": 2}, "threshold must be a number from 0 to 1, not 2"),
        (m.Fuzzing, {"wrong": "no"}, "unknown kind of wrong marks 'no'"),
        (m.Purity, {"per_question": 0}, "per_question must be"),
        (m.Purity, {"top_share": "a"}, "top_share must be a number from 0 to 1, not 'a'"),
        (m.Responsiveness, {"seed": -1}, "seed must be a whole number of at least 0, not -1"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            kind(questioner, **options)  # type: ignore[arg-type]
        assert isinstance(caught.value, UnknownNameError) == message.startswith("unknown")
    with pytest.raises(InputError, match="give a Questioner"):
        m.Detection(WordJudge())  # type: ignore[arg-type]
