"""Time of attribution methods over the floor, beside other libraries in the same run.

    python benchmarks/attributions.py --write                        # all of it: docs/benchmarks.md and its plot
    python benchmarks/attributions.py --peers none --only occlusion  # one method of ours
    python benchmarks/attributions.py --quick                        # our methods on a tiny model, in seconds

Three questions. Classification (a BERT of 6 layers and width 384, texts of 20 to 60 tokens): how long does a method
take, over the bare model on the rows that it ran? Shapley: how far from the exact values of an 11-word game are 400
evaluations? Generation (GPT-2's shape with 6 layers and width 384, 10 given target tokens): how long does it take?

Weights and words are random: speed does not depend on them. The floor of a method is measured in the same process,
after it: every row that the model saw, at the best rate that the bare model reaches for rows of that length under any
of several batch sizes; the other libraries' processes measure these rates once. Times are CPU seconds of the process,
which other work on the machine disturbs least. Each library runs in processes of its own, each with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
import subjects
from peers.environments import PEERS, environment

from interpreto_mlops.attributions import METHODS

HERE = Path(__file__).resolve().parent
OWN = "interpreto_mlops"
KINDS = {
    "classification": ("captum", "interpreto", "shap", "lime"),
    "generation": ("captum", "inseq"),
    "shapley": ("captum", "interpreto", "shap"),
}
GROUPS = 6  # processes that share our methods


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    shape: subjects.Shape
    vocabulary: int
    words: tuple[int, int]
    prompt: tuple[int, int]
    texts: int
    peer_texts: int
    seeds: int
    rounds: int
    seconds: float


FULL = Size(subjects.Shape(), subjects.GPT2_VOCABULARY, (18, 58), (30, 60), 32, 3, 12, 2, 4.0)
QUICK = Size(subjects.Shape(2, 64, 205), 500, (3, 6), (4, 6), 3, 2, 2, 1, 0.0)


def jobs(size: Size, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """All jobs, the long ones first."""
    shape = size.shape
    causal = subjects.Shape(shape.layers, shape.width, size.vocabulary)
    tokenizer = subjects.bert_tokenizer(shape.vocabulary)
    classifier = subjects.save(subjects.bert(shape), tokenizer, folder / "bert")
    language = subjects.save(subjects.gpt2(causal), subjects.gpt2_tokenizer(size.vocabulary), folder / "gpt2")
    count, few = options.texts or size.texts, options.peer_texts or size.peer_texts
    texts = subjects.sentences(count, *size.words, shape.vocabulary - len(subjects.SPECIALS))
    (game,) = subjects.sentences(1, 11, 11, shape.vocabulary - len(subjects.SPECIALS), seed=1)
    prompts = subjects.sentences(2, *size.prompt, size.vocabulary - 1)
    targets = subjects.sentences(2, 10, 10, size.vocabulary - 1, seed=1)
    common = {"threads": options.threads, "rounds": size.rounds, "seconds": size.seconds}
    game_job = {"text": game, "target": 0, "evaluations": 400, "seeds": size.seeds}
    base = {
        "classification": {**common, "model": classifier},
        "shapley": {**common, "model": classifier, **game_job},
        "generation": {**common, "model": language, "pairs": [*zip(prompts, targets, strict=True)]},
    }
    names = [name for name in METHODS.names() if not options.only or name in options.only]
    found: list[dict[str, Any]] = []
    for kind in options.kinds:
        job = {**base[kind], "kind": kind}
        own = {**job, "library": OWN, "texts": texts, "fresh_floor": True}
        split = [names[start::GROUPS] for start in range(GROUPS)] if kind == "classification" else [names]
        found += [{**own, "only": group} for group in split if group]
        short = {**job, "texts": texts[:few], "only": options.only, "fresh_floor": False}
        found += [{**short, "library": peer} for peer in KINDS[kind] if peer in options.peers]
    return found


def run(job: dict[str, Any], number: int, folder: Path, pythons: dict[str, tuple[str | None, str]]) -> list[dict]:
    """Run one job in a process of its own and return its records."""
    python, why = pythons[job["library"]]
    named = {"kind": job["kind"], "library": job["library"]}
    if python is None:
        return [{**named, "failed": f"cannot be installed: {why}"}]
    given, result = folder / f"{number}.json", folder / f"{number}-result.json"
    module = "own" if job["library"] == OWN else job["library"]
    given.write_text(json.dumps({**job, "library": module}))
    environ = {**os.environ, "OMP_NUM_THREADS": str(job["threads"]), "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    environ.pop("PYTHONPATH", None)
    if job["library"] == OWN:
        environ["PYTHONPATH"] = str(HERE.parent)
    command = [python, str(HERE / "peers" / "run_peer.py"), str(given), str(result)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    print(f"{job['library']}, {job['kind']}: {'done' if done.returncode == 0 else done.stderr[-2000:]}", flush=True)
    records = json.loads(result.read_text()) if result.exists() else [{"failed": done.stderr.strip()[-200:]}]
    return [{**named, **record} for record in records]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and three texts, to see that all runs")
    parser.add_argument("--only", type=_names, default=[], help="these methods, by our names, separated by commas")
    parser.add_argument("--kinds", type=_names, default=list(KINDS), help="classification, shapley, generation")
    parser.add_argument("--peers", type=_names, help="these libraries, or none; by default all, with --quick none")
    parser.add_argument("--texts", type=int, help="texts for our methods, 32 by default")
    parser.add_argument("--peer-texts", type=int, help="texts for the other libraries, 3 by default")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="processes at a time")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in each process")
    parser.add_argument("--json", type=Path, help="write the records to this file")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and its plot")
    options = parser.parse_args()
    if options.peers is None:
        options.peers = [] if options.quick else sorted({peer for peers in KINDS.values() for peer in peers})
    if options.quick and options.write:
        parser.error("--quick measures a tiny model, whose numbers are not for the page")
    return options


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name != "none"]


def main() -> None:
    options = arguments()
    pythons: dict[str, tuple[str | None, str]] = {OWN: (sys.executable, "")}
    pythons |= {peer: environment(peer) for peer in PEERS if peer in options.peers}
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(options.jobs) as pool:
        todo = jobs(QUICK if options.quick else FULL, options, Path(name))
        done = pool.map(lambda item: run(item[1], item[0], Path(name), pythons), enumerate(todo))
        records = [record for each in done for record in each]
    facts = report.facts(options.threads, options.jobs)
    results = {"facts": facts, "quick": options.quick, "records": records}
    text = report.attributions(results)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    if options.write:
        report.write("attributions", text, image=report.plot(records))
    if failed := [record for record in records if record["library"] == OWN and "failed" in record]:
        sys.exit(f"failed: {failed}")


if __name__ == "__main__":
    main()
