from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from interpreto_mlops.attributions.metrics.results import MetricResult
from interpreto_mlops.attributions.results import AttributionSet, Target
from interpreto_mlops.errors import InputError
from interpreto_mlops.visuals import figures
from interpreto_mlops.visuals.lettering import drawable
from tests.visuals.concept_samples import description, hostile_descriptions, importance
from tests.visuals.hostile import HOSTILE, attribution

MATHS = "$\\frac{1}{$ costs $5 $x^2$"


def result(name: str = "deletion", method: str = "occlusion", **changes: object) -> MetricResult:
    curve = np.column_stack([np.linspace(0, 1, 9), np.linspace(0.9, 0.1, 9) ** 2])
    values: dict[str, object] = {
        "name": name,
        "method": method,
        "values": np.array([0.2, 0.3]),
        "random_values": np.array([0.5, 0.6]),
        "better_than_random": np.ones(2),
        "higher_is_better": name == "insertion",
        "curve": curve,
        "random_curve": curve**0.5,
    }
    return MetricResult(**{**values, **changes})  # type: ignore[arg-type]


def all_figures() -> Iterator[Figure]:
    for text in (*HOSTILE, MATHS):
        yield figures.attribution_figure(attribution(text, method=MATHS))
    hostile = pd.Series(list(HOSTILE[:6]))
    yield figures.cost_figure(cost_table(method=hostile, metric=MATHS))
    for text in HOSTILE:
        item = attribution(text, method=MATHS)
        twice = {"scores": np.repeat(item.scores, 2, axis=0), "targets": (Target(0, text), Target(1, MATHS))}
        yield figures.matrix_figure(attribution(text, **twice))
    yield figures.curves_figure([result(), result(method=MATHS), result("insertion", "😀中\x00\ud800")])
    yield figures.comparison_figure(
        {MATHS: {MATHS: (0.5, 0.1, 0.4, 0.6), "x": (np.nan, np.nan, np.nan, np.nan)}, "b": {}}
    )
    descriptions = hostile_descriptions()
    values = np.random.default_rng(0).normal(size=(3, len(descriptions)))
    yield figures.importance_figure(importance(values, (MATHS, "<b>", "中文")), descriptions)
    yield figures.training_figure([{"epoch": 1.0, MATHS: 0.5}, {"epoch": 2.0, MATHS: 0.4, "l0": 3.0}])


def cost_table(**changes: object) -> pd.DataFrame:
    """Two metrics of three methods: by the first, `c` costs more than `b` and is worse."""
    rows = [
        {"method": method, "metric": metric, "higher_is_better": higher, "mean": mean, "evaluations": evaluations}
        for metric, higher, means in (("insertion", True, (0.5, 0.8, 0.7)), ("deletion", False, (0.5, 0.3, 0.2)))
        for method, mean, evaluations in zip("abc", means, (10.0, 100.0, 1000.0), strict=True)
    ]
    frame = pd.DataFrame(rows).assign(texts=10, random_mean=0.4, seconds=1.0)
    return frame.assign(low=frame["mean"] - 0.1, high=frame["mean"] + 0.1).assign(**changes)


def test_the_cost_figure_has_a_panel_a_metric_and_rings_what_nothing_beats() -> None:
    figure = figures.cost_figure(cost_table())
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["insertion ↑", "deletion ↓"]
    assert [text.get_text() for text in first.texts] == ["a", "b"]
    assert [text.get_text() for text in second.texts] == ["a", "b", "c"]
    points = [line for line in first.get_lines() if line.get_label() in "abc"]
    assert [float(np.asarray(line.get_xdata())[0]) for line in points] == [1, 10, 100]
    assert first.get_xscale() == "log"
    labels = [label.get_text() for label in first.get_xticklabels()]
    assert {"1", "10", "100"} <= set(labels)
    assert not any("$" in label for label in labels)
    assert figures.cost_figure(cost_table(), cost="seconds").axes[0].get_xlabel() == "seconds for one text"
    with pytest.raises(InputError, match="'evaluations', 'seconds', not 'money'"):
        figures.cost_figure(cost_table(), cost="money")


def test_forty_nine_methods_can_be_told_apart() -> None:
    looks = {figures._look(place) for place in range(49)}
    assert len(looks) == 49


def test_a_matrix_has_a_row_a_target_and_leaves_out_cells_without_a_score() -> None:
    scores = np.array([[1.0, -2.0, np.nan], [0.5, 0.0, 3.0]])
    targets = (Target(0, "\n"), Target(1, MATHS))
    item = attribution("good bad odd", scores=scores, targets=targets, output=np.zeros(2), standard_error=None)
    figure = figures.matrix_figure(item)
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    assert shown is not None
    assert np.ma.getmaskarray(shown).tolist() == np.isnan(scores).tolist()
    assert axes.patch.get_hatch()
    assert axes.get_yticklabels()[0].get_text() == "⏎"
    assert figures.to_png(figure)
    assert AttributionSet([item]).plot().axes[0].get_title(loc="left").startswith("scores of")
    bars = AttributionSet([item]).plot(target=1).axes[0].patches
    assert [bar.get_width() for bar in bars] == [0.5, 0.0, 3.0]


def test_a_large_matrix_is_cut_to_what_can_be_read() -> None:
    scores = np.random.default_rng(0).normal(size=(70, 200))
    targets = tuple(Target(i, f"t{i}") for i in range(70))
    item = attribution("w " * 200, scores=scores, targets=targets, output=np.zeros(70), standard_error=None)
    axes = figures.matrix_figure(item).axes[0]
    assert axes.images[0].get_array().shape == (40, 60)
    assert "first 40 of 70 targets · 60 largest of 200 elements" in axes.get_title(loc="left")


def test_the_bars_of_a_continuation_leave_out_what_comes_after_the_target() -> None:
    scores = np.array([[2.0, -1.0, np.nan, np.nan]])
    item = attribution("good bad so far", scores=scores, standard_error=None, boundary=9, prompt_tokens=2)
    assert [bar.get_width() for bar in figures.attribution_figure(item).axes[0].patches] == [2.0, -1.0]


def test_hostile_text_is_drawn_without_a_warning_or_mathematics() -> None:
    # Warnings are errors here: a glyph that is missing from the font would fail.
    for figure in all_figures():
        assert figures.to_png(figure).startswith(b"\x89PNG")
        texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
        assert not any(text.get_parse_math() or text.get_usetex() for text in texts)


def test_nothing_to_draw_is_still_a_figure() -> None:
    empty = importance(np.array([[0.0, 0.0], [np.nan, np.nan]]))
    for figure in (
        figures.attribution_figure(attribution("")),
        figures.curves_figure([]),
        figures.curves_figure([result(curve=None)]),
        figures.comparison_figure({}),
        figures.cost_figure(cost_table().iloc[:0]),
        figures.cost_figure(cost_table(evaluations=0.0, mean=np.nan)),
        figures.matrix_figure(attribution("", scores=np.zeros((0, 0)), targets=(), output=np.zeros(0))),
        figures.matrix_figure(attribution("a b", scores=np.full((1, 2), np.nan))),
        figures.importance_figure(empty, []),
        figures.training_figure([]),
    ):
        assert figures.to_png(figure)


def test_bars_follow_the_scores_in_the_order_of_the_text() -> None:
    item = attribution("good bad odd", scores=np.array([[2.0, -1.0, np.nan]]), standard_error=None)
    axes = figures.attribution_figure(item).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["good", "bad", "odd"]
    assert [bar.get_width() for bar in axes.patches] == [2.0, -1.0, 0.0]
    assert [mpl.colors.to_hex(bar.get_facecolor()) for bar in axes.patches] == [
        figures.FOR,
        figures.AGAINST,
        figures.UNKNOWN,
    ]
    assert axes.yaxis_inverted()


def test_long_texts_show_their_largest_scores_and_say_so() -> None:
    scores = np.arange(50.0)[None] * np.where(np.arange(50) % 2, -1, 1)
    axes = figures.attribution_figure(attribution("w " * 50, scores=scores, standard_error=None), max_elements=5).axes[
        0
    ]
    assert [bar.get_width() for bar in axes.patches] == [-45, 46, -47, 48, -49]
    assert "5 largest of 50" in axes.get_title(loc="left")


def test_each_metric_has_a_panel_each_method_a_line_and_random_one_entry() -> None:
    results = [result(), result(method="lime"), result("insertion"), result("sufficiency", curve=None)]
    figure = figures.curves_figure(results)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["deletion ↓", "insertion ↑"]
    entries = [text.get_text().split()[0] for text in figure.axes[0].get_legend().get_texts()]
    assert entries == ["occlusion", "lime", "random"]
    x, y = figure.axes[0].get_lines()[0].get_data()
    assert np.array_equal(x, 100 * results[0].curve[:, 0])
    assert np.array_equal(y, results[0].curve[:, 1])
    assert sum(line.get_linestyle() == "--" for line in figure.axes[0].get_lines()) == 2


def test_the_comparison_puts_dot_interval_and_random_where_they_belong() -> None:
    table = {"faithfulness/deletion": {"lime": (0.3, 0.6, 0.2, 0.4)}, "own": {"shap": (1.0, np.nan, np.nan, np.nan)}}
    figure = figures.comparison_figure(table, higher_is_better={"own": True})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["deletion ↓", "own ↑"]
    drawn = [np.asarray(line.get_xdata()).tolist() for line in figure.axes[0].get_lines()]
    assert drawn == [[0.2, 0.4], [0.6, 0.6], [0.3]]
    assert len(figure.axes[1].get_lines()) == 1
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["lime", "shap"]


def test_importance_shows_the_shares_of_the_largest_concepts() -> None:
    shares = importance(np.array([[1.0, -5.0, 2.0], [3.0, 0.5, 1.5]]))
    axes = figures.importance_figure(shares, [description(i, (f"w{i}",)) for i in range(3)], max_concepts=2).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["w1  1", "w0  0"]
    assert np.allclose(axes.images[0].get_array(), shares.normalised[:, [1, 0]].T)
    assert [text.get_text() for text in axes.texts] == ["−62", "+10", "+12", "+60"]


def test_training_has_a_panel_for_each_quantity_over_epochs() -> None:
    figure = figures.training_figure([{"epoch": 5.0, "loss": 2.0}, {"epoch": 6.0, "loss": 1.0, "l0": 3.0}])
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "l0"]
    assert np.asarray(figure.axes[0].get_lines()[0].get_xdata()).tolist() == [5, 6]
    assert figure.axes[0].get_xlabel() == "epoch"


def test_the_users_matplotlib_settings_stay_and_do_not_matter() -> None:
    item = attribution("costs $5 and $6", standard_error=None)
    plain = figures.to_png(figures.attribution_figure(item))
    changed = {
        "text.parse_math": False,
        "font.family": ["serif"],
        "axes.facecolor": "red",
        "axes.grid": True,
        "savefig.facecolor": "red",
    }
    with mpl.rc_context(changed):
        before = dict(mpl.rcParams)
        assert figures.to_png(figures.attribution_figure(item)) == plain
        assert dict(mpl.rcParams) == before


@pytest.mark.slow
def test_pyplot_is_never_loaded() -> None:
    code = (
        "import sys, numpy as np\n"
        "from interpreto_mlops.visuals import attributions_html, concepts_html, report_html, figures\n"
        "figures.to_png(figures.training_figure([{'loss': 1.0}]))\n"
        "sys.exit('matplotlib.pyplot' in sys.modules or 'mlflow' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("good", "good"),
        ("  two\n lines ", "two lines"),
        ("\ue000x", "□x"),
        ("e\u0301", "e\u0301"),
        ("a\U000e0100", "a"),
        ("x" * 99, "x" * 27 + "…"),
    ],
)
def test_labels_have_only_characters_that_are_drawn(text: str, label: str) -> None:
    assert drawable(text) == label
