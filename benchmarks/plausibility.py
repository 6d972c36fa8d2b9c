"""Agreement of attributions with human rationales, for a classifier trained here on real text.

    python benchmarks/plausibility.py --data shared/data/toxic_spans --write

The data are the posts of SemEval-2021 task 5 (tsd_train.csv and tsd_test.csv: toxic characters marked by people).
They are cut into sentences: one with marked characters is `toxic`, one without, from the same posts, `neutral`. So both
classes have the same source, topics and style, and what tells them apart is what people marked. The classifier learns
from the sentences of the training posts; test sentences that it rightly calls toxic are explained.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from pathlib import Path
from typing import Any

import matplotlib as mpl
import report
import torch

from interpreto_mlops.attributions import METHODS
from interpreto_mlops.attributions.metrics import Plausibility
from interpreto_mlops.attributions.metrics.plausibility import spans_of_characters
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset
from interpreto_mlops.text.granularity import sentence_spans, word_spans
from interpreto_mlops.workflows.classifier import TrainedClassifier, train_classifier

TOXIC, NEUTRAL = "toxic", "neutral"
WORDS = (4, 40)
MEASURES = ("auprc", "token_f1", "iou_f1")
PLOT = report.DOCS / "images" / "plausibility.png"

Span = tuple[int, int]


def sentences(path: Path) -> list[tuple[str, list[Span]]]:
    """Each sentence of a file of posts, with the spans of its characters that people marked."""
    found = []
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            text, marked = row["text"], set(json.loads(row["spans"]))
            for start, end in sentence_spans(text).tolist() if marked else []:
                if WORDS[0] <= len(word_spans(text[start:end])) <= WORDS[1]:
                    found.append(
                        (text[start:end], spans_of_characters([each - start for each in marked if start <= each < end]))
                    )
    return found


def balanced(found: list[tuple[str, list[Span]]], name: str, most: int, seed: int) -> TextDataset:
    """As many neutral sentences as toxic ones, `most` of each at most, drawn at random."""
    rng = random.Random(seed)
    kinds = [[text for text, spans in found if bool(spans) is toxic] for toxic in (True, False)]
    size = min(most, *map(len, kinds))
    drawn = [
        (text, label) for texts, label in zip(kinds, (TOXIC, NEUTRAL), strict=True) for text in rng.sample(texts, size)
    ]
    rng.shuffle(drawn)
    return TextDataset(name, tuple(text for text, _ in drawn), tuple(label for _, label in drawn))


def explained(
    model: TextModel, found: list[tuple[str, list[Span]]], most: int, seed: int
) -> tuple[list[str], list[list[Span]]]:
    """Toxic sentences, drawn at random, that the model calls toxic, with their rationales."""
    toxic = [(text, spans) for text, spans in found if spans]
    random.Random(seed).shuffle(toxic)
    chosen = []
    for start in range(0, len(toxic), 64):
        batch = toxic[start : start + 64]
        rows = model.tokenizer([text for text, _ in batch], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            predicted = model.model(**rows).logits.argmax(-1).tolist()
        chosen += [pair for pair, label in zip(batch, predicted, strict=True) if model.labels[label] == TOXIC]
        if len(chosen) >= most:
            break
    return [text for text, _ in chosen[:most]], [spans for _, spans in chosen[:most]]


def score(model: TextModel, names: list[str], texts: list[str], rationales: list[list[Span]]) -> list[dict[str, Any]]:
    """The three agreements of each method, with their intervals, beside random rankings."""
    metric = Plausibility(rationales)
    records = []
    with model.engine.shared_table():
        for name in names:
            explanations = METHODS.get(name)(model)(texts, TOXIC)
            results = metric(explanations)
            for measure in MEASURES:
                summary = results[f"plausibility/{measure}"].summary()
                records.append({**summary, "metric": measure})
            print(f"{name}: " + ", ".join(f"{r['metric']} {r['mean']:.3f}" for r in records[-3:]), flush=True)
    return records


def table(records: list[dict[str, Any]]) -> str:
    """One row a method, the best AUPRC first, and one for random rankings."""
    by_method = {r["method"]: {x["metric"]: x for x in records if x["method"] == r["method"]} for r in records}
    rows = [
        [name, *(f"{of[m]['mean']:.3f} ({of[m]['low']:.3f} to {of[m]['high']:.3f})" for m in MEASURES)]
        for name, of in sorted(by_method.items(), key=lambda item: -item[1]["auprc"]["mean"])
    ]
    chance = {m: [r["random"] for r in records if r["metric"] == m] for m in MEASURES}
    rows.append(["random ranking", *(f"{sum(chance[m]) / len(chance[m]):.3f}" for m in MEASURES)])
    return report.table(("method", "AUPRC", "token F1", "IOU F1"), rows)


def plot(records: list[dict[str, Any]], path: Path = PLOT) -> Path:
    """Draw each agreement with its interval, and where random rankings are; return the file."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    auprc = {r["method"]: r["mean"] for r in records if r["metric"] == "auprc"}
    names = sorted(auprc, key=lambda name: auprc[name])
    figure, panels = plt.subplots(1, 3, figsize=(10, 0.9 + 0.28 * len(names)), sharey=True, layout="constrained")
    for axes, measure, title in zip(panels, MEASURES, ("AUPRC", "token F1", "IOU F1"), strict=True):
        of = {r["method"]: r for r in records if r["metric"] == measure}
        means = [of[name]["mean"] for name in names]
        error = [
            [of[name]["mean"] - of[name]["low"] for name in names],
            [of[name]["high"] - of[name]["mean"] for name in names],
        ]
        axes.errorbar(means, range(len(names)), xerr=error, fmt="o", color="#4c78a8", capsize=2)
        axes.scatter(
            [of[name]["random"] for name in names], range(len(names)), marker="|", s=90, color="#b03a2e", label="random"
        )
        axes.set_title(title, fontsize=10)
        axes.set_xlim(0, 1)
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="x", alpha=0.3)
    panels[0].legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def page(options: argparse.Namespace, facts: dict[str, Any], records: list[dict[str, Any]]) -> str:
    """The generated part of the docs."""
    said = (
        f"The classifier ({facts['layers']} layers, width {facts['width']}) learnt from {facts['train']} sentences and "
        f"is right on {facts['accuracy']:.1%} of {facts['test']} held-out "
        f"ones, half of them toxic. Explained: {facts['explained']} held-out sentences that it rightly calls toxic; "
        f"people marked {facts['marked']:.0%} of their characters. In brackets the 95 % bootstrap interval over texts."
    )
    return f"{report.machine(report.facts(options.threads, 1))}\n\n{said}\n\n{table(records)}"


def train(found: dict[str, list], options: argparse.Namespace) -> tuple[TrainedClassifier, dict[str, Any]]:
    """The classifier, and what is to be said of it."""
    data = {name: balanced(found[name], name, options.train_sentences, options.seed) for name in found}
    trained = train_classifier(data["train"], data["test"], epochs=options.epochs, seed=options.seed)
    facts = {"accuracy": trained.accuracy, "seconds": trained.seconds}
    config = trained.model.config
    sizes = {"train": len(data["train"]), "test": len(data["test"])}
    return trained, {**facts, **sizes, "layers": config.num_hidden_layers, "width": config.hidden_size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of tsd_train.csv and tsd_test.csv")
    parser.add_argument("--methods", default=",".join(METHODS.names()), help="by name, separated by commas")
    parser.add_argument("--texts", type=int, default=150, help="how many sentences are explained")
    parser.add_argument("--train-sentences", type=int, default=8000, help="at most so many of each class")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its plot")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {name: sentences(options.data / f"tsd_{name}.csv") for name in ("train", "test")}
    trained, facts = train(found, options)
    print(f"accuracy {trained.accuracy:.3f} after {trained.seconds:.0f} s", flush=True)
    model = TextModel(trained.model, trained.tokenizer, name="toxic-sentences")
    texts, rationales = explained(model, found["test"], options.texts, options.seed)
    facts["explained"] = len(texts)
    facts["marked"] = sum(end - start for spans in rationales for start, end in spans) / sum(map(len, texts))
    records = score(model, options.methods.split(","), texts, rationales)
    text = page(options, facts, records)
    print(text)
    if options.json:
        options.json.write_text(json.dumps({"facts": facts, "records": records}, indent=1))
    if options.write:
        report.write("plausibility", text, image=plot(records))


if __name__ == "__main__":
    main()
