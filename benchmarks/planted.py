"""Whether each family finds concepts that were planted, and how well it reconstructs them.

    python benchmarks/planted.py

Rows are sparse sums of known unit directions with codes that are not negative, an offset, and noise; those for the
factorisations that take no negative numbers have directions without any, and no offset. The cosine is that of the
planted directions and the found ones, matched one to one (|cosine| for signed families).
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import report
import torch
from scipy.optimize import linear_sum_assignment

from interpreto_mlops.concepts import DICTIONARIES, ConceptDictionary, evaluate

WIDTH, CONCEPTS, ROWS, ACTIVE = 32, 24, 12_000, 3
NONNEGATIVE = ("nmf", "cockatiel")
TRAINED = {"n_epochs": 30}
SETTINGS: dict[str, dict[str, Any]] = {
    "topk_sae": {"k": ACTIVE, **TRAINED},
    "batchtopk_sae": {"k": ACTIVE, **TRAINED},
    "mp_sae": {"k": ACTIVE, **TRAINED},
    "ra_topk_sae": {"k": ACTIVE, **TRAINED},
    "vanilla_sae": TRAINED,
    "jumprelu_sae": TRAINED,
}


def planted(*, nonnegative: bool = False, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows, shape (ROWS, WIDTH), and the directions in them, shape (CONCEPTS, WIDTH)."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(CONCEPTS, WIDTH, generator=generator)
    if nonnegative:
        directions = directions.clamp(min=0)
    directions /= directions.norm(dim=1, keepdim=True)
    held = torch.rand(ROWS, CONCEPTS, generator=generator) < ACTIVE / CONCEPTS
    codes = (0.5 + torch.rand(ROWS, CONCEPTS, generator=generator)) * held
    rows = codes @ directions + 0.02 * torch.randn(ROWS, WIDTH, generator=generator)
    return (rows.clamp(min=0) if nonnegative else rows + 1.0), directions


def recovered(dictionary: ConceptDictionary, directions: torch.Tensor) -> float:
    """Return the mean cosine of planted and found directions that match best."""
    found = torch.nn.functional.normalize(dictionary.dictionary, dim=1)
    cosines = (directions @ found.T).numpy()
    cosines = abs(cosines) if dictionary.signed else cosines
    left, right = linear_sum_assignment(cosines, maximize=True)
    return float(cosines[left, right].mean())


def measure(names: list[str] | None = None) -> list[dict[str, Any]]:
    """Return a record for each family."""
    records = []
    for name in names or DICTIONARIES.names():
        rows, directions = planted(nonnegative=name in NONNEGATIVE)
        family = DICTIONARIES.get(name)
        size = {"n_concepts": CONCEPTS if family.sized else None}
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            dictionary = family(**{**size, **SETTINGS.get(name, {})}).fit(rows, progress=False)
        seconds = time.process_time() - start
        scores = evaluate(dictionary, rows, ["reconstruction/r2", "complexity/l0"])
        records.append({"what": name, "cosine": recovered(dictionary, directions), "seconds": seconds, **scores})
    return records


def table(records: list[dict[str, Any]]) -> str:
    """The records as a markdown table."""
    rows = [
        (
            record["what"],
            f"{record['cosine']:.3f}",
            f"{record['reconstruction/r2']:.3f}",
            f"{record['complexity/l0']:.1f}",
            f"{record['seconds']:.1f}",
        )
        for record in sorted(records, key=lambda record: -record["cosine"])
    ]
    return report.table(("family", "mean matched cosine", "R²", "L0", "CPU s"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), help="these families, separated by commas")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(table(measure(options.only)))


if __name__ == "__main__":
    main()
