"""Run one library's part of the benchmark, in the environment where it is installed.

    python run_peer.py JOB.json RESULT.json

The job names the library, a saved model, texts and what to do; the result is a list of records. Only the library
itself, torch and transformers are imported.
"""

from __future__ import annotations

import importlib
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
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import Floor, best, measure


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
    model, tokenizer = load(job["model"], job["kind"])
    records = []
    for record in globals()[job["kind"]](jobs, job, model, tokenizer):
        records.append(record)
        print(f"{time.perf_counter() - start:7.1f} s {record}"[:300], flush=True)
        result_path.write_text(json.dumps(records))


if __name__ == "__main__":
    main()
