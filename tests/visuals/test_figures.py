from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from interpreto_mlops.attributions.metrics.results import MetricResult
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
    yield figures.curves_figure([result(), result(method=MATHS), result("insertion", "😀中\x00\ud800")])
    yield figures.comparison_figure(
        {MATHS: {MATHS: (0.5, 0.1, 0.4, 0.6), "x": (np.nan, np.nan, np.nan, np.nan)}, "b": {}}
    )
    descriptions = hostile_descriptions()
    values = np.random.default_rng(0).normal(size=(3, len(descriptions)))
    yield figures.importance_figure(importance(values, (MATHS, "<b>", "中文")), descriptions)
    yield figures.training_figure([{"epoch": 1.0, MATHS: 0.5}, {"epoch": 2.0, MATHS: 0.4, "l0": 3.0}])


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
