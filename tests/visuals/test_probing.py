"""The figure of probes over layers."""

from __future__ import annotations

from interpreto_mlops.visuals.figures import to_png
from interpreto_mlops.visuals.probing import LayerScore, probing_figure


def test_a_line_with_its_band_for_each_probe_and_chance_dashed() -> None:
    scores = [LayerScore(0.6, 0.5, 0.7, 0.5), LayerScore(0.9, 0.85, 0.95, 0.55)]
    alone = [LayerScore(0.1, 0.0, 0.2), LayerScore(0.4, 0.3, 0.5)]
    figure = probing_figure(
        ["0", "1"], {"probing/auroc": {"a": scores, "b": scores}, "probing/selectivity": {"a": alone}}
    )
    first, second = figure.axes
    assert first.get_title(loc="left") == "auroc ↑"
    drawn = {line.get_label(): line.get_ydata().tolist() for line in first.get_lines() if line.get_linestyle() == "-"}
    assert drawn == {"a": [0.6, 0.9], "b": [0.6, 0.9]}
    assert sum(line.get_linestyle() == "--" for line in first.get_lines()) == 2
    assert [line.get_linestyle() for line in second.get_lines()] == ["-"]
    assert [tick.get_text() for tick in second.get_xticklabels()] == ["0", "1"]
    assert to_png(figure).startswith(b"\x89PNG")


def test_names_of_labels_are_drawn_as_they_are() -> None:
    figure = probing_figure(["$x^2$"], {"probing/auroc": {"$\\frac{1}{0}$<script>": [LayerScore(0.5, 0.4, 0.6)]}})
    assert to_png(figure).startswith(b"\x89PNG")
