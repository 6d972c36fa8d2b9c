"""Gradient × activation of concepts over the bare forward and backward from the layer.

    python benchmarks/concept_gradients.py

BERT of 6 layers and width 384 with random weights, split after block 3, 1,024 concepts by a linear dictionary and by a
TopK autoencoder with random weights. The floor is the bare forward, and the backward of the predicted logits to the
block's output, over length-sorted batches of the same token budget, with parameters that need no gradients. All are
timed in turn in one process, in CPU seconds of one thread; the least of the repeats counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import harvest
import report
import subjects
import torch

from interpreto_mlops.concepts import (
    ConceptDictionary,
    ModelWithSplitPoints,
    SVDConcepts,
    TopKSAEConcepts,
    concept_importance,
)
from interpreto_mlops.models.packing import pack
from interpreto_mlops.models.text_model import TextModel

BAR = 1.3
BUDGET = 1024


def bare(model: TextModel, texts: list[str]) -> None:
    """Predict, and differentiate the predicted logits by the block's output."""
    encodings = list(model.encode(texts))
    caught: list[torch.Tensor] = []

    def begin(_module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        leaf = output.detach().requires_grad_(True)
        caught.append(leaf)
        torch.set_grad_enabled(True)
        return leaf

    handle = model.model.bert.encoder.layer[harvest.LAYER].register_forward_hook(begin)
    with model.frozen():
        for batch in pack([len(encoding) for encoding in encodings], BUDGET):
            with torch.no_grad():
                logits = model.model(**model.inputs([encodings[i] for i in batch])).logits
                torch.autograd.grad(logits.max(dim=1).values.sum(), caught.pop())
    handle.remove()


def random_dictionary(
    kind: type[ConceptDictionary], n_concepts: int, width: int, **parameters: Any
) -> ConceptDictionary:
    """A dictionary with random directions: what is in it changes no speed."""
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(n_concepts, width, generator=generator), dim=1)
    dictionary = kind(n_concepts=n_concepts, **parameters)
    weights = {"mean": torch.zeros(width), "scale": torch.tensor(1.0), "encoder": decoder.clone(), "decoder": decoder}
    dictionary.complete({**weights, "encoder_bias": torch.zeros(n_concepts)}, [], {})
    return dictionary


def measure(count: int = 300, repeats: int = 5, n_concepts: int = 1024) -> list[dict[str, Any]]:
    """Return a record for each dictionary."""
    shape = subjects.Shape()
    model, texts = harvest.bert(shape), harvest.texts(count)
    split = ModelWithSplitPoints(model, [harvest.LAYER])
    linear = random_dictionary(SVDConcepts, n_concepts, shape.width)
    sae = random_dictionary(TopKSAEConcepts, n_concepts, shape.width, k=32)

    def importance(dictionary: ConceptDictionary) -> Callable[[], None]:
        return lambda: void(concept_importance(split, dictionary, texts, token_budget=BUDGET, progress=False))

    jobs = {"bare": lambda: bare(model, texts), "linear": importance(linear), "topk_sae": importance(sae)}
    seconds = {name: float("inf") for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return [{"what": name, "ratio": seconds[name] / seconds["bare"]} for name in jobs if name != "bare"]


def void(_value: object) -> None:
    """Take a result that only its time is wanted of."""


def table(records: list[dict[str, Any]]) -> str:
    """The records as a markdown table."""
    rows = [
        (r["what"], f"{r['ratio']:.2f}", f"≤ {BAR:.2f}: {'yes' if r['ratio'] <= BAR else '**no**'}") for r in records
    ]
    return report.table(("gradient × activation, 1,024 concepts", "over the bare forward and backward", "bar"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(table(measure(repeats=options.repeats)))


if __name__ == "__main__":
    main()
