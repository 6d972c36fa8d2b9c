"""The parts of a simulation: balanced draws, marks of importances, and the reading of answers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from interpreto_mlops.errors import InputError
from interpreto_mlops.llm.fences import quoted
from interpreto_mlops.llm.simulation import Explanation, FeatureKind, Sample, Study
from interpreto_mlops.llm.simulation.importances import kept, mark, normalised, threshold
from interpreto_mlops.llm.simulation.parsing import ClassNames, parse_answer
from interpreto_mlops.llm.simulation.results import bootstrap
from interpreto_mlops.llm.simulation.sampling import Phases, draw_phases


def study_of(counts: dict[tuple[int, int], int], n_classes: int) -> Study:
    """Texts by (prediction, label)."""
    samples = [
        Sample(f"{said} {label} {i}", i, said, label) for (said, label), n in counts.items() for i in range(n)
    ]  # fmt: skip
    empty = Explanation(FeatureKind.CONCEPT, (), np.zeros((n_classes, 0)))
    return Study(tuple("abcdef"[:n_classes]), samples, empty)


def drawn(study: Study, seed: int = 0, n_learn: int = 20, n_evaluate: int = 20, mistakes: float = 0.5) -> Phases:
    return draw_phases(study, n_learn=n_learn, n_evaluate=n_evaluate, mistakes=mistakes, seed=seed)


def counts(study: Study, places: tuple[int, ...]) -> Counter[tuple[int, bool]]:
    return Counter((study.samples[p].prediction, study.samples[p].prediction == study.samples[p].label) for p in places)


class TestDraws:
    def test_each_phase_is_balanced_over_classes_and_mistakes(self) -> None:
        study = study_of({(0, 0): 90, (1, 1): 40, (0, 1): 30, (1, 0): 12}, 2)
        for seed in range(20):
            phases = drawn(study, seed)
            for phase in (phases.learn, phases.evaluate):
                assert counts(study, phase) == {(0, True): 5, (0, False): 5, (1, True): 5, (1, False): 5}
            assert not set(phases.learn) & set(phases.evaluate)
            assert phases.notes == ()

    @pytest.mark.parametrize("n_classes", [3, 4, 6])
    def test_sizes_that_do_not_divide_differ_by_one_at_most(self, n_classes: int) -> None:
        pairs = {(a, b): 30 for a in range(n_classes) for b in range(n_classes)}
        study = study_of(pairs, n_classes)
        for seed in range(20):
            phases = drawn(study, seed, n_learn=11, n_evaluate=17)
            for phase, size in ((phases.learn, 11), (phases.evaluate, 17)):
                found = counts(study, phase)
                assert sum(found.values()) == size
                for right in (True, False):
                    of_class = [found[c, right] for c in range(n_classes)]
                    assert max(of_class) - min(of_class) <= 1
                total = [found[c, True] + found[c, False] for c in range(n_classes)]
                assert max(total) - min(total) <= 2

    def test_what_there_is_too_little_of_is_said(self) -> None:
        study = study_of({(0, 0): 90, (1, 1): 90, (0, 1): 3}, 2)
        phases = drawn(study)
        assert Counter(study.samples[p].label == study.samples[p].prediction for p in phases.evaluate)[False] in (1, 2)
        assert len(phases.learn) == len(phases.evaluate) == 20
        first, second = phases.notes
        assert (
            first == "3 of the 40 texts are wrongly predicted, where 20 were asked for: there are 3 such texts, "
            "and 180 others"
        )
        assert second == "wrongly predicted texts are not balanced: there are 0 of 'b', where other classes have 3"

    def test_more_mistakes_take_the_place_of_right_ones(self) -> None:
        study = study_of({(0, 0): 2, (1, 0): 40, (0, 1): 40}, 2)
        phases = drawn(study)
        assert sum(study.samples[p].label != study.samples[p].prediction for p in phases.learn + phases.evaluate) == 38
        assert "38 of the 40 texts are wrongly predicted, where 20 were asked for" in phases.notes[0]

    def test_all_texts_can_be_used(self) -> None:
        study = study_of({(0, 0): 20, (1, 0): 12, (1, 1): 8}, 2)
        phases = drawn(study)
        assert sorted(phases.learn + phases.evaluate) == list(range(40))

    def test_without_labels_classes_are_balanced(self) -> None:
        samples = [Sample(str(i), i, i % 3) for i in range(100)]
        study = Study(("a", "b", "c"), samples, Explanation(FeatureKind.CONCEPT, (), np.zeros((3, 0))))
        phases = drawn(study, n_learn=12, n_evaluate=9)
        assert set(Counter(i % 3 for i in phases.learn).values()) == {4}
        assert set(Counter(i % 3 for i in phases.evaluate).values()) == {3}

    def test_the_order_says_nothing_and_every_text_can_be_drawn(self) -> None:
        study = study_of({(0, 0): 20, (1, 1): 20, (0, 1): 20, (1, 0): 20}, 2)
        places = np.zeros((2, 20))
        seen = Counter[int]()
        for seed in range(400):
            phases = drawn(study, seed)
            for number, phase in enumerate((phases.learn, phases.evaluate)):
                places[number] += [study.samples[p].prediction for p in phase]
            seen.update(phases.evaluate)
        # Each place has either class as often; 4.5 standard deviations.
        assert np.abs(places / 400 - 0.5).max() < 4.5 * 0.5 / 20
        assert len(seen) == 80
        assert stats.chisquare(list(seen.values())).pvalue > 1e-4

    def test_a_seed_is_one_draw(self) -> None:
        study = study_of({(0, 0): 90, (1, 1): 40, (0, 1): 30, (1, 0): 12}, 2)
        assert drawn(study, 5) == drawn(study, 5) != drawn(study, 6)


class TestMarks:
    @pytest.mark.parametrize(
        ("share", "expected"),
        [
            (0.0, ""),
            (0.0499, ""),
            (0.05, "+"),
            (0.29, "+"),
            (0.1 + 0.2, "++"),
            (0.3, "++"),
            (1.0, "++"),
            (-0.04, ""),
            (-0.05, "-"),
            (-0.3, "--"),
            (-1.0, "--"),
            (float("nan"), ""),
        ],
    )
    def test_both_strengths_can_be_reached(self, share: float, expected: str) -> None:
        assert mark(share) == expected

    def test_shares_add_to_one(self) -> None:
        found = normalised(np.asarray([[1.0, -3.0], [0.0, 0.0], [np.nan, 1.0]]))
        assert found[0].tolist() == [0.25, -0.75]
        assert found[1].tolist() == [0.0, 0.0]
        assert np.isnan(found[2]).all()

    def test_concepts_that_matter_to_some_class_are_kept(self) -> None:
        places, limit = kept(np.asarray([[0.9, 0.05, 0.0, 0.05], [0.5, 0.05, -0.4, 0.05]]))
        assert places.tolist() == [0, 2]
        assert limit == 0.05

    def test_the_threshold_halves_until_one_survives(self) -> None:
        places, limit = kept(np.asarray([[0.013, 0.02, 0.001], [np.nan, np.nan, np.nan]]))
        assert limit == 0.0125
        assert places.tolist() == [0, 1]
        assert mark(0.02, limit) == "+"

    def test_nothing_survives_where_all_is_zero(self) -> None:
        assert threshold(np.zeros(4)) == float("inf")
        assert kept(np.zeros((2, 4)))[0].tolist() == []
        assert kept(np.zeros((2, 0)))[0].tolist() == []


NAMES = ("New York", "New York City", "news", "Müller & Söhne", "C", "C++", "non-toxic", "日本 語", "it's: odd")


class TestAnswers:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize(
        "form",
        [
            "Sample_1: {}",
            "sample_1: {}",
            "Sample 1: {}",
            "- **Sample_1**: **{}**",
            '"Sample_1": "{}",',
            "Sample_1 : `{}`",
            "Sample_1: {}.",
            "Sample_1: {} (quite sure)",
            "> Sample_1: {} - it says so",
            "* Sample_1:   {}  ",
        ],
    )
    def test_full_names_in_many_forms(self, name: str, form: str) -> None:
        parsed = parse_answer(form.format(name), ClassNames(NAMES), 3)
        assert parsed.classes == {1: NAMES.index(name)}

    @pytest.mark.parametrize("name", NAMES)
    def test_case_spacing_and_unicode_form(self, name: str) -> None:
        import unicodedata

        names = ClassNames(NAMES)
        for variant in (
            name.upper(),
            name.lower(),
            f"  {name.replace(' ', '   ')} ",
            unicodedata.normalize("NFD", name),
        ):
            assert names.place(variant) == NAMES.index(name)

    @pytest.mark.parametrize(
        "answer",
        [
            "New",
            "New Yorker",
            "York",
            "newspaper",
            "C#",
            "C.9",
            "C(x)",
            "toxic",
            "New York or news",
            "news, or C",
            "",
            "I cannot say",
            "not news",
            "New York is what it says",
            "nonsense",
        ],
    )
    def test_what_is_no_class_or_two_is_refused(self, answer: str) -> None:
        parsed = parse_answer(f"Sample_1: {answer}", ClassNames(NAMES), 1)
        assert parsed.classes == {}
        assert parsed.unknown_classes == [answer]

    def test_names_that_differ_by_case_alone_are_told_apart(self) -> None:
        names = ClassNames(["US", "us"])
        assert (names.place("US"), names.place("us"), names.place("Us")) == (0, 1, None)

    @pytest.mark.parametrize("name", ["[NEG]", "<neutral>", "«x»", "a\u200db"])
    def test_names_are_known_as_prompts_show_them_and_as_they_are(self, name: str) -> None:
        names = ClassNames(["other", name])
        for shown in (name, quoted(name), quoted(name)[1:-1]):
            assert names.place(shown) == 1

    def test_the_same_name_twice_is_refused(self) -> None:
        for pair in (["a", "a"], ["a b", "a  b"]):
            with pytest.raises(InputError, match="anonymous=True"):
                ClassNames(pair)

    def test_duplicates_and_unknown_ids_are_refused(self) -> None:
        text = "Sample_1: a\nSample_2: b\nSample_1: a\nSample_7: a\nSample_0: b\nSample_99999999999: a\nExample_1: b"
        parsed = parse_answer(text, ClassNames(["a", "b"]), 3)
        assert parsed.classes == {2: 1}
        assert parsed.duplicates == [1]
        assert parsed.unknown_ids == ["Sample_7", "Sample_0", "Sample_99999999999"]

    def test_a_second_answer_that_is_no_class_is_a_duplicate_too(self) -> None:
        assert parse_answer("Sample_1: a\nSample_1: or not", ClassNames(["a", "b"]), 1).classes == {}

    @pytest.mark.parametrize("frame", ["{}", "```json\n{}\n```", "  {}\n", "```\n{}\n```"])
    def test_json(self, frame: str) -> None:
        text = frame.format(
            '{"Sample_1": "New York", "sample 2": "NEWS", "Sample_3": 5, "Other": "C", "Sample_4": "C"}'
        )
        parsed = parse_answer(text, ClassNames(NAMES), 3)
        assert parsed.classes == {1: 0, 2: 2}
        assert parsed.unknown_classes == ["5"]
        assert parsed.unknown_ids == ["Other", "Sample_4"]

    def test_what_a_model_thinks_aloud_is_no_answer(self) -> None:
        text = "<think>\nSample_1: news\nSample_2: C\n</think>\n\nSample_1: C++"
        assert parse_answer(text, ClassNames(NAMES), 2).classes == {1: 5}

    def test_json_of_classes_that_are_numbers_or_booleans(self) -> None:
        names = ClassNames(["1", "2", "true"])
        text = '{"Sample_1": 2, "Sample_2": true, "Sample_3": "1", "Sample_4": 1.5, "Sample_5": [1], "Sample_6": null}'
        parsed = parse_answer(text, names, 6)
        assert parsed.classes == {1: 1, 2: 2, 3: 0}
        assert parsed.unknown_classes == ["1.5", "[…]", "null"]

    def test_json_with_a_key_twice(self) -> None:
        parsed = parse_answer('{"Sample_1": "C", "Sample_1": "C++", "Sample_2": "C"}', ClassNames(NAMES), 2)
        assert parsed.classes == {2: 4}
        assert parsed.duplicates == [1]

    def test_json_that_is_cut_still_says_what_its_lines_say(self) -> None:
        parsed = parse_answer('{\n "Sample_1": "C++",\n "Sample_2": "New Y', ClassNames(NAMES), 2)
        assert parsed.classes == {1: 5}

    @pytest.mark.parametrize(
        "text", ["", "{", "[1, 2]", '{"a": ' * 5000, "Sample_1", "Sample_: a", "```", "\x00", "null"]
    )
    def test_rubbish_has_no_answers(self, text: str) -> None:
        assert parse_answer(text, ClassNames(NAMES), 3).classes == {}

    @pytest.mark.parametrize("depth", [50, 900, 5000, 100_000])
    def test_deep_json_is_no_answer(self, depth: int) -> None:
        text = '{"Sample_1": ' + "[" * depth + "]" * depth + ', "Sample_2": "C"}'
        assert set(parse_answer(text, ClassNames(NAMES), 3).classes) <= {2}

    def test_a_long_answer_is_read_in_no_time(self) -> None:
        names = ClassNames([f"class {i}" for i in range(200)])
        hostile = "\n".join(["Sample_1" + " " * 5000, "*" * 20000, "Sample_2: " + "`" * 20000 + "class 1"])
        assert parse_answer(hostile, names, 2).classes == {2: 1}


class TestBootstrap:
    def test_is_about_the_standard_error_of_the_mean(self) -> None:
        values = (np.random.default_rng(0).random((5, 200)) < 0.7).astype(float)
        low, high = bootstrap(values)
        half = 1.96 * np.sqrt(0.7 * 0.3 / values.size)
        assert low < values.mean() < high
        # Seeds are drawn as well, which can only widen it.
        assert half * 0.9 < (high - low) / 2 < half * 2

    @pytest.mark.parametrize("spread", [0.0, 0.1])
    def test_holds_the_mean_about_as_often_as_it_says(self, spread: float) -> None:
        rng = np.random.default_rng(0)
        held = []
        for seed in range(200):
            chance = 0.7 + spread * rng.standard_normal((5, 1))
            low, high = bootstrap((rng.random((5, 20)) < chance).astype(float), seed=seed)
            held.append(low <= 0.7 <= high)
        assert 0.9 < np.mean(held) <= 1.0

    def test_seeds_that_differ_widen_it(self) -> None:
        same, apart = np.tile([0.0, 1.0], (6, 50)), np.repeat([[0.0], [1.0]], 3, axis=0) * np.ones((6, 100))
        widths = [high - low for low, high in (bootstrap(same), bootstrap(apart))]
        assert widths[1] > 3 * widths[0]

    def test_what_is_missing_is_left_out(self) -> None:
        values = np.asarray([[1.0, np.nan], [1.0, 1.0]])
        assert bootstrap(values) == (1.0, 1.0)
        assert np.isnan(bootstrap(np.full((2, 2), np.nan))).all()
