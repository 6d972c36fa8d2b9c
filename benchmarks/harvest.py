"""Activations to disk over the bare model's forward, and the memory of a large harvest.

    python benchmarks/harvest.py            # times, as ratios
    python benchmarks/harvest.py --memory   # the peak memory of two million rows

The model is a BERT of 6 layers and width 384 with random weights, split after three of them; texts have the lengths of
real ones (median 28 tokens, one in twenty over 85, the longest of hundreds over 200). The floor is the bare forward to
that block over length-sorted batches of the same token budget. The padded forward is the whole model's over batches of
32 in the order of the texts. All are timed in turn in one process, in CPU seconds of one thread, and the least of the
repeats counts.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import report
import subjects
import torch

from interpreto_mlops.concepts import ModelWithSplitPoints
from interpreto_mlops.models.packing import pack
from interpreto_mlops.models.text_model import TextModel

LAYER = 2  # the third block: half of the depth
BUDGET = 1024
BARS = {"to disk over the bare forward": 1.15, "six layers over the deepest alone": 1.1}
MEMORY_BAR = 2.0


def texts(count: int, seed: int = 0) -> list[str]:
    """Random words; the lengths are log-normal as those of real texts."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(27), 0.72, count), 1, 500).astype(int)
    words = rng.integers(0, 2000, int(lengths.sum()))
    cuts = np.cumsum(lengths)[:-1]
    return [" ".join(f"word{word}" for word in part) for part in np.split(words, cuts)]


def bert(shape: subjects.Shape, **arithmetic: Any) -> TextModel:
    """The model with its tokenizer."""
    tokenizer = subjects.bert_tokenizer(shape.vocabulary, shape.positions)
    return TextModel(subjects.bert(shape), tokenizer, name="bert", **arithmetic)


class _Stop(Exception):  # noqa: N818 - it ends a forward pass
    pass


def bare(model: TextModel, chosen: list[str], *, ordered: bool) -> None:
    """Run the model: to the block over length-sorted batches, or whole over padded batches of 32 as they come."""
    encodings = list(model.encode(chosen))
    lengths = [len(encoding) for encoding in encodings]
    batches = (
        pack(lengths, BUDGET)
        if ordered
        else [list(range(i, min(i + 32, len(chosen)))) for i in range(0, len(chosen), 32)]
    )
    handle = None
    if ordered:

        def stop(*_: Any) -> None:
            raise _Stop

        handle = model.model.bert.encoder.layer[LAYER].register_forward_hook(stop)
    with torch.inference_mode():
        for batch in batches:
            with suppress(_Stop):
                model.model(**model.inputs([encodings[i] for i in batch]))
    if handle is not None:
        handle.remove()


def measure(count: int = 600, repeats: int = 5, shape: subjects.Shape | None = None) -> list[dict[str, Any]]:
    """Return a record for each ratio."""
    chosen_shape = shape or subjects.Shape(positions=512)
    model, chosen = bert(chosen_shape), texts(count)
    one = ModelWithSplitPoints(model, [LAYER])
    last = ModelWithSplitPoints(model, [-1])
    every = ModelWithSplitPoints(model, list(range(len(model.model.bert.encoder.layer))))

    def harvest(split: ModelWithSplitPoints) -> Callable[[], None]:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder:
                split.get_activations(chosen, directory=folder, token_budget=BUDGET, progress=False)

        return run

    half = ModelWithSplitPoints(bert(chosen_shape, autocast="bfloat16"), [LAYER])
    jobs: dict[str, Callable[[], None]] = {
        "bare": lambda: bare(model, chosen, ordered=True),
        "padded": lambda: bare(model, chosen, ordered=False),
        "disk": harvest(one),
        "deepest": harvest(last),
        "six": harvest(every),
        "half": harvest(half),
    }
    seconds = {name: float("inf") for name in jobs}
    model.fingerprint  # noqa: B018 - found once, whatever runs first
    for _ in range(repeats):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return [
        {"what": "to disk over the bare forward", "ratio": seconds["disk"] / seconds["bare"]},
        {"what": "six layers over the deepest alone", "ratio": seconds["six"] / seconds["deepest"]},
        {"what": "padded full forward over the bare forward", "ratio": seconds["padded"] / seconds["bare"]},
        {"what": "padded full forward over ours to disk", "ratio": seconds["padded"] / seconds["disk"]},
        {"what": "the same over ours in bfloat16", "ratio": seconds["padded"] / seconds["half"]},
    ]


def memory(rows: int = 2_000_000) -> float:
    """Return by how many GiB the peak memory of a harvest of so many rows of width 384 is above the model's."""
    model = bert(subjects.Shape(layers=1))
    split = ModelWithSplitPoints(model, [0])
    split.get_activations(texts(50), progress=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def stream() -> Any:
        seen, seed = 0, 0
        while seen < rows:
            for text in texts(1000, seed):
                seen += text.count(" ") + 1
                yield text
            seed += 1

    with tempfile.TemporaryDirectory() as folder:
        (found,) = split.get_activations(stream(), directory=folder, dtype="float16", progress=False).values()
        assert len(found) >= rows
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20


def table(records: list[dict[str, Any]]) -> str:
    """The records as a markdown table."""
    rows = []
    for record in records:
        bar = BARS.get(record["what"])
        met = "" if bar is None else f"≤ {bar:.2f}: {'yes' if record['ratio'] <= bar else '**no**'}"
        rows.append((record["what"], f"{record['ratio']:.2f}", met))
    return report.table(("activations of BERT 6x384", "ratio", "bar"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.memory:
        torch.set_num_threads(2)
        print(f"{memory(options.rows):.2f} GiB above the model for {options.rows:,} rows (bar: {MEMORY_BAR} GB)")
        return
    torch.set_num_threads(1)
    print(table(measure(repeats=options.repeats)))


if __name__ == "__main__":
    main()
