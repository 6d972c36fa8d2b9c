"""Probes of restaurant reviews' aspects beside human edits of them (CEBaB), and what each layer knows of the aspects.

    python benchmarks/cebab_probes.py --model FOLDER --data FOLDER --write   # docs/probes.md and its picture

`--model` is a sequence classifier of sentiment, `--data` the folder of CEBaB v1.1 with its zip file. Three questions.

What does each layer know of each aspect (food, service, ambiance, noise)? Probes of an aspect's sentiment, Positive or
Negative, cross-validated on reviews; edits of one review are never on both sides.

Does what a probe says of an aspect's effect on the classifier agree with the effect of people's edits? A review says of
each aspect that it is Positive, Negative or nothing (unknown); an edit changes one aspect from one to another. Measured
is by how much the difference of the two logits changes from the original to the edit. Estimated, from the original:
the aspect's three scores move by the difference of their means over training reviews of what the edit makes of it and
of what it was, and the model goes on from there (shift); the same move times the gradient (gradient); or the scores are
set to the means of what the edit makes of it (set). Beside them are probes whose labels were dealt out at random, and
what needs no model: the direction of the edit, -2 for Positive to Negative, 2 for Negative to Positive, 1 between.

Correlations are over edits; over means by aspect and direction; and over edits after the mean of their aspect and
direction is taken away, which is what is left to be said of single reviews.

Which aspects does TCAV find significant for each class?
"""

from __future__ import annotations

import argparse
import io
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import report
import torch
from scipy.stats import pearsonr, spearmanr

from interpreto_mlops.concepts import (
    PROBES,
    ActivationSet,
    ModelWithSplitPoints,
    Probe,
    cross_validate,
    intervention_effect,
    label_concepts,
    local_importance,
    tcav,
)
from interpreto_mlops.errors import TextWarning
from interpreto_mlops.models.loading import load_model
from interpreto_mlops.visuals.probing import LayerScore, probing_figure

ASPECTS = ("food", "service", "ambiance", "noise")
VALUES = ("Negative", "Positive", "unknown")
LAYERS = ("bert.embeddings", 0, 1)
EDITED_LAYER = 0
FAMILIES = ("mean_difference", "logistic", "ridge")
SHOWN = "mean_difference"
PAGE = Path(__file__).resolve().parents[1] / "docs" / "probes.md"
PICTURE = PAGE.parent / "images" / "probes.png"
_RANK = {"Negative": -1, "unknown": 0, "Positive": 1}


def reviews(folder: Path, *parts: str) -> pd.DataFrame:
    """The reviews of some parts, originals and edits."""
    (archive,) = folder.glob("*.zip")
    with zipfile.ZipFile(archive) as files:
        names = {part: next(each for each in files.namelist() if each.endswith(f"/{part}.json")) for part in parts}
        frames = [pd.read_json(io.BytesIO(files.read(name)), dtype=False) for name in names.values()]
    return pd.concat(frames, ignore_index=True)


def aspect(frame: pd.DataFrame, name: str) -> list[str]:
    """What each review says of an aspect; empty where annotators do not agree, or were not asked."""
    return [value if value in VALUES else "" for value in frame[f"{name}_aspect_majority"]]


def pairs(frame: pd.DataFrame) -> pd.DataFrame:
    """Each edit beside its original, with what the edited aspect was before and is afterwards."""
    originals = frame[frame.is_original].drop_duplicates("original_id").set_index("original_id")
    edits = frame[~frame.is_original & frame.edit_type.isin(ASPECTS) & frame.original_id.isin(originals.index)]
    before = originals.loc[edits.original_id]
    columns = {
        "aspect": edits.edit_type.to_numpy(),
        "before": before.description.to_numpy(),
        "after": edits.description.to_numpy(),
        "was": [
            row[f"{name}_aspect_majority"] for name, (_, row) in zip(edits.edit_type, before.iterrows(), strict=True)
        ],
        "is": [
            row[f"{name}_aspect_majority"] for name, (_, row) in zip(edits.edit_type, edits.iterrows(), strict=True)
        ],
    }
    found = pd.DataFrame(columns)
    return found[found.was.isin(VALUES) & found["is"].isin(VALUES) & (found.was != found["is"])].reset_index(drop=True)


def margins(split: ModelWithSplitPoints, texts: list[str]) -> np.ndarray:
    """The logit of the last class less that of the first, for each text."""
    found = []
    for start in range(0, len(texts), 64):
        inputs = split.model.inputs(list(split.model.encode(texts[start : start + 64])))
        with torch.no_grad():
            logits = split.outputs(inputs, {}).logits
        found.append((logits[:, -1] - logits[:, 0]).double().numpy())
    return np.concatenate(found)


def estimates(split: ModelWithSplitPoints, probe: Probe, means: np.ndarray, edits: pd.DataFrame) -> pd.DataFrame:
    """What a probe says of each edit of its aspect, from the original."""
    asked = {"targets": split.model.labels[-1], "contrast": split.model.labels[0], "layer": EDITED_LAYER}
    out = pd.DataFrame(np.nan, index=edits.index, columns=["shift", "gradient", "set"])
    for (was, goal), group in edits.groupby(["was", "is"]):
        target = means[VALUES.index(str(goal))]
        move = target - means[VALUES.index(str(was))]
        texts = group.before.tolist()
        for way, values, mode in (("shift", move, "add"), ("set", target, "set")):
            changed = intervention_effect(split, probe, texts, dict(enumerate(values.tolist())), mode=mode, **asked)
            out.loc[group.index, way] = changed.effects
        found = local_importance(split, probe, texts, method="gradient", **asked)
        out.loc[group.index, "gradient"] = [float(each.totals[0] @ move) for each in found]
    return out


def probe_effects(
    split: ModelWithSplitPoints,
    rows: ActivationSet,
    train: pd.DataFrame,
    edits: pd.DataFrame,
    family: str,
    *,
    deal: bool,
) -> pd.DataFrame:
    """The estimates of a family's probes for all edits; with labels dealt out at random if asked to."""
    found = []
    for number, name in enumerate(ASPECTS):
        said = np.asarray(aspect(train, name))
        if deal:
            known = np.flatnonzero(said != "")
            said[known] = said[np.random.default_rng(number).permutation(known)]
        names, labels = label_concepts(said.tolist(), name)
        assert names == tuple(f"{name}={value}" for value in VALUES)
        probe = PROBES.get(family)().fit(rows, labels, names=names, per="text")
        codes = probe.encode(rows).double().numpy()
        means = np.stack([np.nanmean(codes[labels[rows.text_ids, k] == 1], axis=0) for k in range(len(VALUES))])
        found.append(estimates(split, probe, means, edits[edits.aspect == name]))
    return pd.concat(found).loc[edits.index]


def agreement(estimated: np.ndarray, measured: np.ndarray, edits: pd.DataFrame) -> dict[str, float]:
    """Correlations over edits, over means of aspect and direction, and within these."""
    frame = edits.assign(estimated=estimated, measured=measured)
    groups = frame.groupby(["aspect", "was", "is"])[["estimated", "measured"]]
    means = groups.mean()
    within = frame[["estimated", "measured"]] - groups.transform("mean")
    constant = np.allclose(within.estimated, 0)
    return {
        "pearson": float(pearsonr(frame.estimated, frame.measured).statistic),
        "spearman": float(spearmanr(frame.estimated, frame.measured).statistic),
        "means": float(pearsonr(means.estimated, means.measured).statistic),
        "within": float("nan") if constant else float(pearsonr(within.estimated, within.measured).statistic),
        "slope": float(np.polyfit(frame.estimated, frame.measured, 1)[0]),
    }


def effects(
    split: ModelWithSplitPoints, rows: ActivationSet, train: pd.DataFrame, edits: pd.DataFrame
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records of the agreement for each family and way, and of one family's for each aspect."""
    measured = margins(split, edits.after.tolist()) - margins(split, edits.before.tolist())
    records, by_aspect = [], []
    for family in FAMILIES:
        for deal in (False, True):
            estimated = probe_effects(split, rows, train, edits, family, deal=deal)
            for way in estimated.columns:
                what = f"{family}{', labels dealt out' if deal else ''}"
                records.append({"probe": what, "way": way, **agreement(estimated[way].to_numpy(), measured, edits)})
            if family == SHOWN and not deal:
                by_aspect = of_aspects(estimated["shift"].to_numpy(), measured, edits)
    sign = edits["is"].map(_RANK) - edits.was.map(_RANK)
    records.append(
        {"probe": "the edit's direction alone", "way": "", **agreement(sign.to_numpy(float), measured, edits)}
    )
    return records, by_aspect


def of_aspects(estimated: np.ndarray, measured: np.ndarray, edits: pd.DataFrame) -> list[dict[str, Any]]:
    """The correlation over the edits of each aspect, and the sizes of both effects."""
    out = []
    for name in ASPECTS:
        mine = (edits.aspect == name).to_numpy()
        both = estimated[mine], measured[mine]
        sizes = [float(np.abs(each).mean()) for each in both]
        out.append(
            {"aspect": name, "edits": int(mine.sum()), "pearson": float(pearsonr(*both).statistic), "sizes": sizes}
        )
    return out


def by_layer(rows: dict[int | str, ActivationSet], train: pd.DataFrame) -> dict[str, list[Any]]:
    """The cross-validated scores of each aspect's sentiment at each layer; reviews of one original are one group."""
    groups = train.original_id.astype(str).to_numpy()
    found: dict[str, list[Any]] = {}
    for name in ASPECTS:
        labels = np.asarray([{"Positive": 1.0, "Negative": 0.0}.get(value, np.nan) for value in aspect(train, name)])
        for layer in LAYERS:
            scores = cross_validate(
                PROBES.get("logistic")(max_rows=6000),
                rows[layer],
                labels,
                names=(name,),
                groups=groups[rows[layer].text_ids],
                per="text",
                repeats=1,
            )
            found.setdefault(name, []).append(scores)
    return found


def layers_figure(scores: dict[str, list[Any]]) -> Any:
    """Balanced accuracy and selectivity of each aspect over the layers."""

    def point(each: Any, metric: str) -> LayerScore:
        chance = each.metrics()["probing/control"] if metric == "balanced_accuracy" else None
        return LayerScore(each.metrics()[f"probing/{metric}"], *each.interval(metric), chance)

    panels = {
        f"probing/{metric}": {name: [point(each, metric) for each in row] for name, row in scores.items()}
        for metric in ("balanced_accuracy", "selectivity")
    }
    return probing_figure(["embeddings", "layer 0", "layer 1"], panels)


def tested(
    split: ModelWithSplitPoints, rows: ActivationSet, train: pd.DataFrame, held_out: pd.DataFrame, *, repetitions: int
) -> pd.DataFrame:
    """TCAV of each aspect's sentiment, Positive against Negative, for the classes of reviews that nobody edited."""
    values = {"Positive": 1.0, "Negative": 0.0}
    labels = np.stack([[values.get(value, np.nan) for value in aspect(train, name)] for name in ASPECTS], axis=1)
    texts = held_out[held_out.is_original].description.tolist()
    asked = {"names": ASPECTS, "layer": EDITED_LAYER, "repetitions": repetitions}
    frames = [
        tcav(split, rows, labels, texts, probe=family, **asked).to_frame().assign(probe=family)
        for family in FAMILIES[:2]
    ]
    return pd.concat(frames, ignore_index=True)


def tables(layers: dict[str, list[Any]], records: list[dict], aspects: list[dict], tests: pd.DataFrame, n: int) -> str:
    """All results as markdown."""
    rows = []
    for name, scores in layers.items():
        cells = []
        for each in scores:
            low, high = each.interval("balanced_accuracy")
            cells.append(f"{each.metrics()['probing/balanced_accuracy']:.3f} ({low:.3f} to {high:.3f})")
        control = max(each.metrics()["probing/control"] for each in scores)
        rows.append((name, str(scores[0].n_rows[0]), *cells, f"{control:.3f}"))
    head = ("aspect", "reviews", "embeddings", "layer 0", "layer 1", "control, at most")
    known = report.table(head, rows)
    head = ("probe", "estimate", "Pearson", "Spearman", "over means", "within", "measured per estimated")
    measures = ("pearson", "spearman", "means", "within", "slope")
    shown = [(r["probe"], r["way"], *("" if np.isnan(r[m]) else f"{r[m]:.2f}" for m in measures)) for r in records]
    found = report.table(head, shown)
    head = ("aspect", "edits", "Pearson", "mean size estimated", "mean size measured")
    lines = [
        (r["aspect"], str(r["edits"]), f"{r['pearson']:.2f}", *(f"{size:.2f}" for size in r["sizes"])) for r in aspects
    ]
    parts = report.table(head, lines)
    head = ("probe", "concept", "class", "texts", "TCAV", "random", "p", "sensitivity", "p of it")
    each = [
        (
            *(str(row[name]) for name in ("probe", "concept", "class", "texts")),
            *(f"{row[name]:.2f}" for name in ("tcav", "tcav_random")),
            f"{row['tcav_p']:.2g}",
            f"{row['sensitivity']:.3f}",
            f"{row['sensitivity_p']:.2g}",
        )
        for row in tests.to_dict("records")
    ]
    texts = (
        "What each layer knows of an aspect's sentiment: balanced accuracy of logistic probes with 95 % intervals.",
        f"Estimated and measured effects of {n} edits.",
        f"Shifts by {SHOWN} probes, aspect by aspect.",
        "TCAV at layer 0 of an aspect being Positive, not Negative; p-values are times the eight tests of a probe.",
    )
    bodies = (known, found, parts, report.table(head, each))
    return "\n\n".join(f"{text}\n\n{body}" for text, body in zip(texts, bodies, strict=True))


def measure(model_folder: Path, data_folder: Path, *, most: int | None = None) -> tuple[str, Any, list[dict[str, Any]]]:
    """Return the tables, the figure and the records of the agreement."""
    model = load_model(model_folder)
    split = ModelWithSplitPoints(model, list(LAYERS))
    train = reviews(data_folder, "train_inclusive").head(most)
    held_out = reviews(data_folder, "dev", "test")
    edits = pairs(held_out).head(most)
    rows = split.get_activations(train.description.tolist(), granularity="sample", progress=False)
    records, aspects = effects(split, rows[EDITED_LAYER], train, edits)
    layers = by_layer(rows, train)
    tests = tested(split, rows[EDITED_LAYER], train, held_out, repetitions=10 if most else 20)
    return tables(layers, records, aspects, tests, len(edits)), layers_figure(layers), records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="write docs/probes.md and its picture")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TextWarning)
        text, figure, _ = measure(options.model, options.data)
    print(text)
    if options.write:
        figure.savefig(PICTURE, dpi=110, facecolor="white")
        report.write("probes", text, PICTURE, PAGE)


if __name__ == "__main__":
    main()
