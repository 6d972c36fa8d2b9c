"""Tables and plots from the benchmark's records, and their place in docs/benchmarks.md."""

from __future__ import annotations

import datetime
import os
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
import transformers

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = DOCS / "benchmarks.md"
PLOT = DOCS / "images" / "benchmark-attributions.png"

OWN = "interpreto_mlops"
SINGLE_PASS = ("saliency", "input_x_gradient")
FLOOR_BAR, SINGLE_PASS_BAR = 1.10, 1.25
ERROR_BAR, GAP_BAR, NODES_BAR, FASTER_BAR = 0.07, 0.01, 10, 5
BARRED = (
    *("occlusion", "lime", "kernel_shap", "shapley_sampling", "sobol", "rise", "banzhaf", "integrated_gradients"),
    *SINGLE_PASS,
)

Record = dict[str, Any]


def facts(threads: int, jobs: int) -> dict[str, Any]:
    """What has to go with every number."""
    return {
        "date": datetime.date.today().isoformat(),
        "cores": os.cpu_count(),
        "threads": threads,
        "jobs": jobs,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def machine(known: dict[str, Any]) -> str:
    """The sentence that stands above every table."""
    return (
        f"Measured on {known['date']}: {known['cores']} CPU cores, {known['jobs']} process(es) at a time, "
        f"{known['threads']} torch thread(s) in each, Python {known['python']}, torch {known['torch']}, transformers "
        f"{known['transformers']}."
    )


def attributions(results: dict[str, Any]) -> str:
    """The whole generated part about attributions."""
    known, records = results["facts"], results["records"]
    by_kind = {kind: [r for r in records if r["kind"] == kind] for kind in ("classification", "shapley", "generation")}
    parts = [machine(known)]
    if not results.get("quick"):
        parts += ["### Bars", table(("bar", "measured", "met"), bars(by_kind))]
    if by_kind["classification"]:
        head = ("method", "library", "setting", "texts", "evaluations a text", "CPU ms a text", "time over floor")
        parts += ["### Classification: time over the floor", table(head, speed(by_kind["classification"]))]
    if by_kind["shapley"]:
        head = ("library", "method", "evaluations", "mean relative error", "least", "most")
        parts += ["### Shapley values of an 11-word game", table(head, errors(by_kind["shapley"]))]
    if by_kind["generation"]:
        head = ("method", "library", "setting", "rows a text", "tokens a text", "CPU ms a text", "times ours")
        parts += ["### Generation: 10 given target tokens", table(head, generation(by_kind["generation"]))]
    return "\n\n".join(parts)


def table(head: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A markdown table."""
    lines = [list(head), *([str(cell).replace("|", "\\|") for cell in row] for row in rows)]
    shown = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([shown[0], f"|{' --- |' * len(lines[0])}", *shown[1:]])


def bars(by_kind: dict[str, list[Record]]) -> Iterator[tuple[str, str, str]]:
    """Each bar of the project with what was measured."""
    ours = {r["method"]: r for r in by_kind["classification"] if r["library"] == OWN and "failed" not in r}
    for name, record in sorted(ours.items()):
        if name in BARRED:
            bar = SINGLE_PASS_BAR if name in SINGLE_PASS else FLOOR_BAR
            yield _bar(f"{name}: time over floor ≤ {bar:.2f}", record["cpu"] / record["floor"], bar, "{:.2f}")
    if "gap" in (path := ours.get("integrated_gradients", {})):
        yield _bar("integrated_gradients: largest completeness gap ≤ 1 %", path["gap"], GAP_BAR, "{:.2%}")
        yield _bar(f"integrated_gradients: nodes on average ≤ {NODES_BAR}", path["nodes"], NODES_BAR, "{:.1f}")
    for library, method, error in _errors(by_kind["shapley"]):
        if library == OWN and method == "kernel_shap":
            yield _bar(
                "kernel_shap: relative error ≤ 0.07 at 400 evaluations", float(np.mean(error)), ERROR_BAR, "{:.3f}"
            )
    for record in by_kind["generation"]:
        if (times := _times_ours(record, by_kind["generation"])) is not None and record["library"] != OWN:
            met = "yes" if times >= FASTER_BAR else "**no**"
            yield (
                f"{record['method']}, 10 targets: {FASTER_BAR} times faster than {record['library']}",
                f"{times:.1f}",
                met,
            )


def _bar(name: str, value: float, bar: float, form: str) -> tuple[str, str, str]:
    return name, form.format(value), "yes" if value <= bar else "**no**"


def speed(records: list[Record]) -> Iterator[tuple[str, ...]]:
    """Rows of the classification table, method by method, ours first."""
    for r in sorted(records, key=lambda r: (r.get("method", ""), r["library"] != OWN, r["library"])):
        name = (r.get("method", "all"), r["library"], r.get("setting", ""))
        if "failed" in r:
            yield *name, "", "", "", f"not run: {r['failed']}"
        else:
            each = r["evaluations"] / r["texts"]
            cells = (str(r["texts"]), f"{each:.1f}", f"{1000 * r['cpu'] / r['texts']:.0f}")
            yield *name, *cells, f"{r['cpu'] / r['floor']:.2f}"


def _errors(records: list[Record]) -> Iterator[tuple[str, str, list[float]]]:
    exact = next((r["runs"][0]["values"] for r in records if r.get("method") == "exact" and "runs" in r), None)
    if exact is None:
        return
    truth = np.asarray(exact)
    for r in records:
        if "runs" in r and r["method"] != "exact":
            distance = [np.linalg.norm(np.asarray(run["values"]) - truth) for run in r["runs"]]
            yield r["library"], r["method"], [float(d / np.linalg.norm(truth)) for d in distance]


def errors(records: list[Record]) -> Iterator[tuple[str, ...]]:
    """Rows of the table of Shapley errors, the best first."""
    used = {(r["library"], r["method"]): max(run["evaluations"] for run in r["runs"]) for r in records if "runs" in r}
    for library, method, error in sorted(_errors(records), key=lambda row: float(np.mean(row[2]))):
        numbers = (f"{np.mean(error):.3f}", f"{min(error):.3f}", f"{max(error):.3f}")
        yield library, method, str(used[library, method]), *numbers
    for r in records:
        if "failed" in r:
            yield r["library"], r.get("method", "all"), "", f"not run: {r['failed']}", "", ""


def _times_ours(record: Record, records: list[Record]) -> float | None:
    """How many times the time of ours at default settings."""
    for r in records:
        if (r["library"], r.get("method"), r.get("setting")) == (OWN, record.get("method"), "") and "failed" not in r:
            return None if "failed" in record else (record["cpu"] / record["texts"]) / (r["cpu"] / r["texts"])
    return None


def generation(records: list[Record]) -> Iterator[tuple[str, ...]]:
    """Rows of the table of generation, method by method, ours first."""
    for r in sorted(records, key=lambda r: (r.get("method", ""), r["library"] != OWN, r["library"])):
        name = (r.get("method", "all"), r["library"], r.get("setting", ""))
        if "failed" in r:
            yield *name, "", "", "", f"not run: {r['failed']}"
        else:
            n, times = r["texts"], _times_ours(r, records)
            costs = (f"{r['evaluations'] / n:.0f}", f"{r['tokens'] / n:.0f}", f"{1000 * r['cpu'] / n:.0f}")
            yield *name, *costs, "" if times is None else f"{times:.1f}"


def plot(records: list[Record], path: Path = PLOT) -> Path:
    """Draw time over the floor: a mark for each library; return the file."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    timed = [r for r in records if r["kind"] == "classification" and "failed" not in r]
    names = sorted({r["method"] for r in timed}, reverse=True)
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.32 * len(names)), layout="constrained")
    for library, marker in zip(sorted({r["library"] for r in timed} - {OWN}), "os^vP", strict=False):
        _mark(axes, [r for r in timed if r["library"] == library], names, library, marker=marker, s=42)
    _mark(axes, [r for r in timed if r["library"] == OWN], names, OWN, marker="D", s=64, color="black")
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1, linestyle="--", label="floor")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(names)), names)
    axes.grid(axis="y", alpha=0.3)
    axes.set_xlabel("CPU time over the bare model's for the same evaluations (1 = floor)")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _mark(axes: Any, records: list[Record], names: list[str], library: str, **style: Any) -> None:
    places = [names.index(r["method"]) for r in records]
    axes.scatter([r["cpu"] / r["floor"] for r in records], places, edgecolors="white", label=library, **style)


def write(name: str, text: str, image: Path | None = None, place: Path | None = None) -> None:
    """Put a generated part, below its image if it has one, between its markers in the page, docs/benchmarks.md."""
    place = PAGE if place is None else place
    if image is not None:
        text = f"![{image.stem}]({image.relative_to(place.parent).as_posix()})\n\n{text}"
    begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
    page = place.read_text(encoding="utf-8")
    if begin not in page or end not in page:
        raise SystemExit(f"{place} has no markers {begin!r} and {end!r}")
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    place.write_text(pattern.sub(lambda _: f"{begin}\n\n{text.strip()}\n\n{end}", page), encoding="utf-8")
