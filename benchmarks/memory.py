"""Peak memory of explaining generated tokens, for few and for many texts, each in a process of its own.

    python benchmarks/memory.py --texts 8,32 --methods occlusion,integrated_gradients --write

The model has GPT-2's vocabulary of 50,257, 6 layers and width 384, with random weights; prompts are 30 to 60 tokens
long and 20 target tokens are given. Peak memory is that of the resident set. It must not grow with the number of texts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import report
import subjects
import torch

from interpreto_mlops.attributions import METHODS
from interpreto_mlops.models.text_model import TextModel

BAR = 1.05
TARGETS = 20


def peak() -> float:
    """The largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(method: str, count: int, shape: subjects.Shape, threads: int) -> dict[str, float]:
    """Explain `count` texts in this process and return its peak before and after, and the seconds."""
    torch.set_num_threads(threads)
    model = TextModel(subjects.gpt2(shape), subjects.gpt2_tokenizer(shape.vocabulary), name="gpt2")
    prompts = subjects.sentences(count, 30, 60, shape.vocabulary - 1)
    targets = subjects.sentences(count, TARGETS, TARGETS, shape.vocabulary - 1, seed=1)
    before, start = peak(), time.process_time()
    explained = METHODS.get(method)(model, granularity="token")(prompts, targets)
    assert len(explained) == count
    assert all(item.scores.shape[0] == TARGETS for item in explained)
    return {"before": before, "peak": peak(), "cpu": time.process_time() - start}


def in_process(method: str, count: int, options: argparse.Namespace) -> dict[str, float]:
    """Run `child` in a fresh process."""
    command = [sys.executable, __file__, "--child", method, "--texts", str(count), "--threads", str(options.threads)]
    command += ["--quick"] if options.quick else []
    environ = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{method}, {count} texts: ended with {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", default="8,32", help="numbers of texts, separated by a comma")
    parser.add_argument("--methods", default="occlusion,integrated_gradients")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at a time")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--quick", action="store_true", help="a tiny model")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shape = subjects.Shape(2, 64, 500) if options.quick else subjects.Shape(vocabulary=subjects.GPT2_VOCABULARY)
    counts = [int(count) for count in options.texts.split(",")]
    if options.child:
        print(json.dumps(child(options.child, counts[0], shape, options.threads)))
        return
    todo = [(method, count) for method in options.methods.split(",") for count in counts]
    with ThreadPoolExecutor(options.jobs) as pool:
        measured = pool.map(lambda pair: in_process(*pair, options), todo)
        records = [{"method": m, "texts": n, **each} for (m, n), each in zip(todo, measured, strict=True)]
    text = f"{report.machine(report.facts(options.threads, options.jobs))}\n\n{table(records)}"
    print(text)
    if options.json:
        options.json.write_text(json.dumps(records, indent=1))
    if options.write:
        report.write("memory", text)


def table(records: list[dict]) -> str:
    """Peak memory by method and number of texts, beside that of the fewest texts."""
    rows = []
    for r in records:
        least = min((other for other in records if other["method"] == r["method"]), key=lambda other: other["texts"])
        times = r["peak"] / least["peak"]
        cells = (f"{r['before']:.0f}", f"{r['peak']:.0f}", f"{times:.2f}", "yes" if times <= BAR else "**no**")
        rows.append((r["method"], r["texts"], *cells))
    head = ("method", "texts", "MiB with the model loaded", "peak MiB", "times the fewest texts", f"at most {BAR}")
    return report.table(head, rows)


if __name__ == "__main__":
    main()
