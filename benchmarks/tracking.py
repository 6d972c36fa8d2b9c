"""What keeping evidence costs the quickstart: seconds in MLflow and in the catalogue, beside all the rest.

    python benchmarks/tracking.py --write

One quickstart from nothing, into a SQLite store of its own. Every call of MLflow's client, of its functions that read
and write model folders, and of the catalogue is timed by the wall clock, the outermost call alone where one calls
another. Drawing and writing the pages of results is no such call; its time is in the stages below.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import json
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import mlflow.artifacts
import mlflow.transformers
import report
import torch
from mlflow import MlflowClient

from interpreto_mlops.audit.catalogue import Catalogue
from interpreto_mlops.tracking import _mlflow_private
from interpreto_mlops.workflows.job import Console
from interpreto_mlops.workflows.quickstart import Sizes, quickstart

BAR = 0.08
QUICK = Sizes(train_per_label=30, epochs=1, explained=3, fitted=60, scored=30, n_concepts=16, k=4)
# The stages of the quickstart whose time is that of keeping evidence, pages and pictures included.
STAGES = ("store", "tracking", "report", "catalogue")


class Meter:
    """Seconds and calls by what was called, in all threads."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._inside = threading.local()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed where it is not called by another one that is."""

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            if getattr(self._inside, "any", False):
                return function(*arguments, **named)
            self._inside.any = True
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self._inside.any = False
                with self._lock:
                    self.seconds[part] += time.perf_counter() - start
                    self.calls[part] += 1

        return call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time what is called inside."""
        with ExitStack() as stack:
            for part, home in (("MLflow", MlflowClient), ("catalogue", Catalogue)):
                for name, kind in vars(home).items():
                    if not name.startswith("_") and inspect.isfunction(kind):
                        stack.enter_context(patch.object(home, name, self.timed(part, kind)))
            connect = self.timed("catalogue", Catalogue.connect.__func__)  # type: ignore[attr-defined]
            stack.enter_context(patch.object(Catalogue, "connect", classmethod(connect)))
            for module, name in (
                (mlflow.artifacts, "download_artifacts"),
                (mlflow.transformers, "save_model"),
                (_mlflow_private, "end_run"),
            ):
                stack.enter_context(patch.object(module, name, self.timed("MLflow", getattr(module, name))))
            yield


def measure(sizes: Sizes) -> dict[str, Any]:
    """Seconds of one quickstart: in all, in each stage, and in the calls."""
    console, meter = Console(quiet=True), Meter()
    with tempfile.TemporaryDirectory() as folder, meter.watching():
        quickstart(folder=Path(folder) / "store", console=console, sizes=sizes)
    return {"stages": console.seconds, "seconds": dict(meter.seconds), "calls": dict(meter.calls)}


def table(found: dict[str, Any]) -> str:
    """What was measured, as a markdown table."""
    total = found["stages"]["total"]
    rows = [
        (f"calls of {part}", f"{found['calls'].get(part, 0)}", *_share(found["seconds"].get(part, 0.0), total), "")
        for part in ("MLflow", "catalogue")
    ]
    calls = sum(found["seconds"].values())
    met = "yes" if calls <= BAR * total else "**no**"
    rows.append(("both", f"{sum(found['calls'].values())}", *_share(calls, total), f"at most {BAR:.0%}: {met}"))
    evidence = sum(found["stages"].get(name, 0.0) for name in STAGES)
    rows.append(("evidence in all: these calls, pages, pictures, tables", "", *_share(evidence, total), ""))
    rows.append(("the quickstart", "", *_share(total, total), ""))
    return report.table(("what", "calls", "seconds", "of the quickstart", "bar"), rows)


def _share(seconds: float, total: float) -> tuple[str, str]:
    return f"{seconds:.2f}", f"{seconds / total:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--quick", action="store_true", help="a tiny quickstart, whose shares say nothing")
    parser.add_argument("--json", type=Path, help="write the record to this file")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = measure(QUICK if options.quick else Sizes())
    text = f"{report.machine(report.facts(options.threads, 1))}\n\n{table(found)}"
    print(text)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    if options.write:
        report.write("tracking", text)


if __name__ == "__main__":
    main()
