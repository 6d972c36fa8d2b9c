"""Concepts of a sentiment classifier beside human edits of restaurant reviews (CEBaB), and ablation beside gradients.

    python benchmarks/concept_agreement.py --model FOLDER --data FOLDER --write   # docs/benchmarks.md

`--model` is a sequence classifier of sentiment, `--data` the folder of CEBaB v1.1 with its zip file. Two questions.

Do the concepts whose ablation moves a class's logit most also have the largest gradient × activation? Spearman's
correlation over concepts, for each class, on reviews that no dictionary was fitted on.

Do edits of one aspect (food, service, ambiance, noise) move that aspect's concept more than edits of the others? For
each aspect the concept is chosen on half of the original reviews: the one whose mean code the aspect's edits change
most beyond the others' edits. On the other half its mean |change| under the aspect's edits is divided by that under
edits of the other aspects; 1 would be chance.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import report
import torch
from scipy.stats import spearmanr

from interpreto_mlops.concepts import DICTIONARIES, ConceptDictionary, ModelWithSplitPoints, concept_importance
from interpreto_mlops.models.loading import load_model

ASPECTS = ("food", "service", "ambiance", "noise")
FAMILIES: dict[str, dict[str, Any]] = {
    "topk_sae": {"n_concepts": 128, "k": 8},
    "batchtopk_sae": {"n_concepts": 128, "k": 8},
    "semi_nmf": {"n_concepts": 32},
    "ica": {"n_concepts": 32},
    "pca": {"n_concepts": 32},
}
LAYER = 0


def reviews(folder: Path, part: str) -> pd.DataFrame:
    """The reviews of one part, originals and edits."""
    (archive,) = folder.glob("*.zip")
    with zipfile.ZipFile(archive) as files:
        name = next(each for each in files.namelist() if each.endswith(f"{part}.json"))
        return pd.read_json(io.BytesIO(files.read(name)))


def mean_codes(split: ModelWithSplitPoints, dictionary: ConceptDictionary, texts: list[str]) -> np.ndarray:
    """The mean code of each text's tokens, shape (texts, concepts)."""
    rows = split.get_activations(texts, progress=False)[LAYER]
    codes = dictionary.encode(rows)
    sums = torch.zeros(len(texts), codes.shape[1]).index_add_(0, torch.from_numpy(rows.text_ids), codes)
    return (sums / torch.from_numpy(np.bincount(rows.text_ids, minlength=len(texts)))[:, None].clamp(min=1)).numpy()


def pairs(data: pd.DataFrame) -> pd.DataFrame:
    """Each edit beside its original."""
    originals = data[data.is_original].set_index("original_id").description
    edits = data[~data.is_original & data.edit_type.isin(ASPECTS) & data.original_id.isin(originals.index)]
    return pd.DataFrame(
        {
            "original_id": edits.original_id,
            "aspect": edits.edit_type,
            "before": edits.original_id.map(originals.groupby(level=0).first()),
            "after": edits.description,
        }
    ).reset_index(drop=True)


def edit_ratios(changes: np.ndarray, aspects: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """Choose each aspect's concept on the first half; return its ratio on the second."""
    ratios = {}
    for aspect in ASPECTS:
        mine = aspects == aspect
        gap = changes[first & mine].mean(axis=0) - changes[first & ~mine].mean(axis=0)
        concept = int(np.abs(gap).argmax()) if not (gap > 0).any() else int(gap.argmax())
        held = np.abs(changes[:, concept])
        ratios[aspect] = float(held[~first & mine].mean() / held[~first & ~mine].mean())
    return ratios


def measure(model_folder: Path, data_folder: Path, *, most: int | None = None) -> list[dict[str, Any]]:
    """Return a record for each family."""
    model = load_model(model_folder)
    split = ModelWithSplitPoints(model, [LAYER])
    train, test = reviews(data_folder, "train_exclusive"), reviews(data_folder, "test")
    edited = pairs(reviews(data_folder, "train_inclusive")).head(most)
    rows = split.get_activations(train.description.tolist()[:most], progress=False)[LAYER]
    held_out = test.description.tolist()[: (most and most // 4) or 300]
    first = edited.original_id.rank(method="dense").to_numpy() % 2 == 0
    records = []
    for name, settings in FAMILIES.items():
        dictionary = DICTIONARIES.get(name)(**settings).fit(rows, progress=False)
        ways = [
            concept_importance(split, dictionary, held_out, method=way, progress=False).values
            for way in ("ablation", "gradient_x_activation")
        ]
        alive = (np.abs(ways[0]) > 0).any(axis=0)
        correlation = [float(spearmanr(*(way[k, alive] for way in ways)).statistic) for k in range(len(model.labels))]
        before, after = (mean_codes(split, dictionary, edited[side].tolist()) for side in ("before", "after"))
        ratios = edit_ratios(np.abs(after - before), edited.aspect.to_numpy(), first)
        records.append({"family": name, "correlation": dict(zip(model.labels, correlation, strict=True)), **ratios})
    return records


def table(records: list[dict[str, Any]]) -> str:
    """The records as a markdown table."""
    labels = list(records[0]["correlation"])
    head = ("family", *(f"rank correlation, {label}" for label in labels), *(f"{aspect} edits" for aspect in ASPECTS))
    rows = [
        (r["family"], *(f"{r['correlation'][label]:.2f}" for label in labels), *(f"{r[a]:.2f}" for a in ASPECTS))
        for r in records
    ]
    return report.table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = table(measure(options.model, options.data))
    print(text)
    if options.write:
        report.write("concept-agreement", text)


if __name__ == "__main__":
    main()
