"""Run one library's part of the benchmark, in the environment where it is installed.

    python run_peer.py JOB.json RESULT.json

The job names the library, a saved model (or activations), texts and what to do; the result is a list of records. Only
the library itself, torch and transformers are imported.
"""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import Floor, best, measure
from sae_scores import scores


def load(folder: str, kind: str) -> tuple[Any, Any]:
    source = AutoModelForCausalLM if kind == "generation" else AutoModelForSequenceClassification
    return source.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def classification(jobs: Any, job: dict[str, Any], model: Any, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """Time each method over the floor of its own evaluations."""
    texts, floor = job["texts"], Floor(model, job["rounds"])
    for name, setting, call in jobs.classification(model, tokenizer):
        if job.get("only") and name not in job["only"]:
            continue
        record = {"method": name, "setting": setting}
        try:
            call([" ".join(texts[0].split()[:3])])
            cost = best(model, lambda call=call: call(texts), seconds=job["seconds"])
        except Exception as error:  # noqa: BLE001 - what a library raises is its result here
            yield {**record, "failed": reason(error)}
            continue
        yield {
            **record,
            "texts": len(texts),
            "evaluations": cost.evaluations,
            "tokens": cost.tokens,
            "cpu": cost.cpu,
            "wall": cost.wall,
            "floor": floor.seconds(cost),
            **getattr(jobs, "checks", lambda _result: {})(cost.result),
        }
        if job["fresh_floor"]:
            floor.forget()


def shapley(jobs: Any, job: dict[str, Any], model: Any, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """The values of one game, estimated with several seeds."""
    for name, estimate in jobs.shapley(model, tokenizer):
        try:
            runs = []
            for seed in range(1 if name == "exact" else job["seeds"]):
                cost = measure(model, lambda s=seed, e=estimate: e(job["text"], job["target"], job["evaluations"], s))
                runs.append({"values": cost.result, "evaluations": cost.evaluations})
        except Exception as error:  # noqa: BLE001 - what a library raises is its result here
            yield {"method": name, "failed": reason(error)}
            continue
        yield {"method": name, "runs": runs}


def generation(jobs: Any, job: dict[str, Any], model: Any, tokenizer: Any) -> Iterator[dict[str, Any]]:
    """The time to explain given continuations."""
    for name, setting, call in jobs.generation(model, tokenizer):
        record = {"method": name, "setting": setting}
        try:
            call(*(" ".join(part.split()[:2]) for part in job["pairs"][0]))
            cost = best(model, lambda call=call: [call(*pair) for pair in job["pairs"]], seconds=job["seconds"])
        except Exception as error:  # noqa: BLE001 - what a library raises is its result here
            yield {**record, "failed": reason(error)}
            continue
        yield {
            **record,
            "texts": len(job["pairs"]),
            "evaluations": cost.evaluations,
            "tokens": cost.tokens,
            "cpu": cost.cpu,
            "wall": cost.wall,
        }


def sae(jobs: Any, job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Train sparse autoencoders on given rows, all for the same number of rows, and score them on held-out ones."""
    train, held_out = (load_file(job["activations"])[part] for part in ("train", "held_out"))
    for family, settings, seed in itertools.product(job["families"], jobs.SETTINGS, job["seeds"]):
        record = {"method": family, "setting": settings, "seed": seed}
        start = time.process_time()
        try:
            apply = jobs.train(job, family, seed, shuffled(train, job["batch"], job["steps"], seed), **settings)
            seconds = time.process_time() - start
            yield {**record, "cpu": seconds, **scores(apply, held_out, train)}
        except Exception as error:  # noqa: BLE001 - what a library raises is its result here
            yield {**record, "failed": reason(error)}


def shuffled(rows: torch.Tensor, batch: int, steps: int, seed: int) -> Iterator[torch.Tensor]:
    """Batches of all rows in random order, epoch after epoch, `steps` of them."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        place = step % (len(rows) // batch)
        if place == 0:
            order = torch.randperm(len(rows), generator=generator)
        yield rows[order[place * batch : (place + 1) * batch]]


def reason(error: Exception) -> str:
    """One line that says what went wrong; the whole of it goes to the log."""
    traceback.print_exception(error)
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def main() -> None:
    job_path, result_path = map(Path, sys.argv[1:])
    job = json.loads(job_path.read_text())
    torch.set_num_threads(job["threads"])
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    try:
        jobs = importlib.import_module(f"{job['library']}_jobs")
    except Exception as error:  # noqa: BLE001 - a library that does not import is a result too
        result_path.write_text(json.dumps([{"failed": reason(error)}]))
        return
    given = () if job["kind"] == "sae" else load(job["model"], job["kind"])
    records = []
    for record in globals()[job["kind"]](jobs, job, *given):
        records.append(record)
        print(f"{time.perf_counter() - start:7.1f} s {record}"[:300], flush=True)
        result_path.write_text(json.dumps(records))


if __name__ == "__main__":
    main()
