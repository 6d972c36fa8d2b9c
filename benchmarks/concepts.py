"""Concepts: harvests, autoencoder steps and concept gradients over their floors, and planted concepts, for the page.

python benchmarks/concepts.py --write   # docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import os

import concept_gradients
import harvest
import planted
import report
import sae_step
import torch

STEP_BARS = {"float32": 1.1, "bfloat16": 0.6}


def steps() -> str:
    """Our training step over five dense float32 products, as a markdown table."""
    rows = []
    for each in sae_step.measure_steps(threads=(1,)):
        bar = STEP_BARS[each.precision]
        met = "yes" if each.ratio <= bar else "**no**"
        rows.append((str(each.width), str(each.n_concepts), each.precision, f"{each.ratio:.2f}", f"≤ {bar:.2f}: {met}"))
    return report.table(("width", "concepts", "precision", "over five dense products", "bar"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    torch.set_num_threads(1)
    parts = [
        report.machine(report.facts(1, 1)),
        harvest.table(harvest.measure()),
        concept_gradients.table(concept_gradients.measure()),
        steps(),
    ]
    found = planted.table(planted.measure())
    print("\n\n".join([*parts, found]))
    if options.write:
        report.write("concepts", "\n\n".join(parts))
        report.write("planted", found)


if __name__ == "__main__":
    main()
