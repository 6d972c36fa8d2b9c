"""Time of a harvest of activations to disk over the bare forward pass, and its peak memory.

    python benchmarks/harvest.py             # the ratios, with one torch thread
    python benchmarks/harvest.py --memory    # the peak memory of two million rows, in a process of its own
    python benchmarks/harvest.py --quick     # a tiny model, to see that all runs

The model is a BERT of 6 layers and width 384 with random weights, the texts are 768 of random words, 29 tokens long at
the median and some 83 at the 95th percentile. Three ratios:

- harvest / bare: tokenising, running and writing all token activations of block 3, over running the model, stopped at
  that block, on the same texts, tokenised before and sorted by length, in batches of the same number of tokens;
- all layers / deepest: a harvest of all 6 blocks in one pass, over one of the last block alone;
- padded / harvest: the whole model on batches of 32 texts as they come, padded, as most tools do, over the harvest.

What is compared is run in turns in one process; times are its CPU seconds, of which the least counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import report
import subjects
import torch

from interpreto_mlops.concepts import ModelWithSplitPoints
from interpreto_mlops.models.encoding import Encoding
from interpreto_mlops.models.packing import pack
from interpreto_mlops.models.text_model import TextModel

BUDGET = 1024
PADDED_ROWS = 32
HARVEST_BAR, LAYERS_BAR, MEMORY_BAR = 1.15, 1.10, 2048.0
QUICK = subjects.Shape(2, 64, 205)
MEMORY = subjects.Shape(1, 384)


def subject(shape: subjects.Shape) -> TextModel:
    return TextModel(subjects.bert(shape), subjects.bert_tokenizer(shape.vocabulary), name="bert")


def reviews(count: int, vocabulary: int, seed: int = 0) -> Iterator[str]:
    """Texts whose lengths are those of reviews: many short ones, a few of three times the median."""
    rng = np.random.default_rng(seed)
    for length in np.clip(np.exp(rng.normal(np.log(27), 0.69, count)).round(), 1, 126).astype(int):
        yield " ".join(f"word{number}" for number in rng.integers(vocabulary - len(subjects.SPECIALS), size=length))


def bare(split: ModelWithSplitPoints, encodings: list[Encoding]) -> None:
    """Run the model to its deepest split point on texts sorted by length, and keep nothing."""
    module = split.model.model.get_submodule(split.split_points[-1])

    def stop(*_: object) -> None:
        raise StopIteration

    handle = module.register_forward_hook(stop)
    try:
        for batch in pack([len(each) for each in encodings], BUDGET):
            inputs = split.model.inputs([encodings[place] for place in batch])
            with torch.inference_mode():
                try:
                    split.model.model(**inputs)
                except StopIteration:
                    continue
    finally:
        handle.remove()


def padded(model: TextModel, texts: list[str]) -> None:
    """Run the whole model on batches of texts as they come."""
    for start in range(0, len(texts), PADDED_ROWS):
        inputs = model.tokenizer(texts[start : start + PADDED_ROWS], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            model.model(**{name: value for name, value in inputs.items() if name in model.accepts})


def harvest(split: ModelWithSplitPoints, texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        split.get_activations(texts, directory=folder, token_budget=BUDGET, progress=False)


def least(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Run each call in turns and return the least CPU seconds of each."""
    seconds = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.process_time()
            call()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def ratios(*, quick: bool = False, rounds: int = 5) -> dict[str, float]:
    """Measure, and return the ratios and seconds by name."""
    model = subject(QUICK if quick else subjects.Shape())
    n_layers = model.model.config.num_hidden_layers
    texts = list(reviews(40 if quick else 768, model.vocabulary if quick else subjects.Shape().vocabulary))
    encodings = list(model.encode(texts))
    middle = ModelWithSplitPoints(model, [(n_layers - 1) // 2])
    last, every = ModelWithSplitPoints(model, [-1]), ModelWithSplitPoints(model, range(n_layers))
    model.fingerprint  # noqa: B018 - hashed once a model, not once a harvest
    found = least(
        {
            "bare": lambda: bare(middle, encodings),
            "harvest": lambda: harvest(middle, texts),
            "deepest": lambda: harvest(last, texts),
            "every": lambda: harvest(every, texts),
            "padded": lambda: padded(model, texts),
        },
        rounds,
    )
    return {
        "harvest/bare": found["harvest"] / found["bare"],
        "all layers/deepest": found["every"] / found["deepest"],
        "padded/harvest": found["padded"] / found["harvest"],
        "tokens": float(sum(map(len, encodings))),
        **{f"{name} seconds": value for name, value in found.items()},
    }


def memory_child(rows: int) -> dict[str, float]:
    """Harvest that many token activations in this process, and return its peak with the model and after."""
    model = subject(MEMORY)
    split = ModelWithSplitPoints(model, [-1])
    model.fingerprint  # noqa: B018
    before = _peak()
    texts = (text for seed in range(rows) for text in reviews(500, MEMORY.vocabulary, seed))

    def enough() -> Iterator[str]:
        left = rows
        for text in texts:
            if left <= 0:
                return
            left -= text.count(" ") + 1
            yield text

    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        start = time.process_time()
        (found,) = split.get_activations(enough(), directory=folder, progress=False).values()
        return {"rows": len(found), "before": before, "peak": _peak(), "cpu": time.process_time() - start}


def memory(rows: int, threads: int) -> dict[str, float]:
    """Run `memory_child` in a fresh process."""
    command = [sys.executable, __file__, "--child", "--rows", str(rows), "--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the harvest of {rows} rows ended with {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tables(speed: dict[str, float] | None, peak: dict[str, float] | None) -> str:
    """What was measured, in markdown."""
    rows: list[tuple[Any, ...]] = []
    if speed:
        met = {"harvest/bare": HARVEST_BAR, "all layers/deepest": LAYERS_BAR}
        rows += [(name, f"{speed[name]:.3f}", bar, _yes(speed[name] <= bar)) for name, bar in met.items()]
        rows.append(("padded/harvest", f"{speed['padded/harvest']:.1f}", "", ""))
    if peak:
        more = peak["peak"] - peak["before"]
        name = f"MiB beyond the model, {peak['rows'] / 1e6:.1f} million rows of width 384"
        rows.append((name, f"{more:.0f}", f"{MEMORY_BAR:.0f}", _yes(more <= MEMORY_BAR)))
    return report.table(("harvest", "measured", "at most", "met"), rows)


def _yes(met: bool) -> str:
    return "yes" if met else "**no**"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that all runs")
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--rows", type=int, default=2_000_000, help="for memory")
    parser.add_argument("--rounds", type=int, default=5, help="of what is timed")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(memory_child(options.rows)))
        return
    speed = None if options.memory else ratios(quick=options.quick, rounds=1 if options.quick else options.rounds)
    peak = memory(options.rows, options.threads) if options.memory else None
    print(f"{report.machine(report.facts(options.threads, 1))}\n\n{tables(speed, peak)}")
    if options.json:
        options.json.write_text(json.dumps({"speed": speed, "memory": peak}, indent=1))


if __name__ == "__main__":
    main()
