"""What autologging costs of the work that it logs, in CPU seconds, side by side with the same work without it.

`python -m benchmarks.autolog` prints the table; `measure_autolog` returns its rows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import mlflow
import torch

import interpreto_mlops as im
from benchmarks import subjects
from interpreto_mlops.attributions import KernelShap, Occlusion, Saliency
from interpreto_mlops.attributions.base import EXPLAINED
from interpreto_mlops.concepts import TopKSAEConcepts
from interpreto_mlops.concepts.training import FITTED
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.tracking import connect

WORDS = 24
WIDTH, N_CONCEPTS = 384, 1024


@dataclass(frozen=True)
class AutologTime:
    """CPU seconds of one piece of work, the least over the rounds.

    Arguments:
        what: was done.
        without: autologging.
        with_it: the same work, logged.
        logging: what of that the logging itself took, by a clock around it.
    """

    what: str
    without: float
    with_it: float
    logging: float

    @property
    def share(self) -> float:
        """The logging over the work."""
        return self.logging / self.without

    @property
    def ratio(self) -> float:
        """The work with logging over the work without it; noise of the work is in it."""
        return self.with_it / self.without


class Clock:
    """Two observers, the one before and the one after autologging, and the CPU time between them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = 0.0

    def start(self, _event: Any) -> None:
        self._start = time.process_time()

    def stop(self, _event: Any) -> None:
        self.seconds += time.process_time() - self._start

    @contextmanager
    def around_autologging(self) -> Iterator[None]:
        """Log what is made inside, and time the logging."""
        kinds: tuple[Any, ...] = (EXPLAINED, FITTED)
        for kind in kinds:
            kind.add(self.start)
        im.autolog()
        for kind in kinds:
            kind.add(self.stop)
        try:
            yield
        finally:
            im.autolog(disable=True)
            for kind in kinds:
                kind.remove(self.start)
                kind.remove(self.stop)


def measure_autolog(
    texts: int = 64, rows: int = 100_000, rounds: int = 3, shape: subjects.Shape | None = None
) -> list[AutologTime]:
    """Time each piece of work with and without autologging, by turns, into a SQLite store of its own.

    Arguments:
        texts: explained by each method.
        rows: of activations that an autoencoder is fitted on.
        rounds: of which the least counts.
        shape: of the explained model.
    """
    before = mlflow.get_tracking_uri()
    with tempfile.TemporaryDirectory() as folder:
        store = connect(f"sqlite:///{folder}/mlflow.db", "autolog")
        mlflow.set_tracking_uri(store.tracking_uri)
        mlflow.set_experiment(experiment_id=store.experiment_id)
        try:
            return [
                _measured(what, work, rounds) for what, work in _work(texts, rows, shape or subjects.Shape()).items()
            ]
        finally:
            mlflow.set_tracking_uri(before)


def _work(texts: int, rows: int, shape: subjects.Shape) -> dict[str, Callable[[], Any]]:
    model = TextModel(subjects.bert(shape), subjects.bert_tokenizer(shape.vocabulary), name="bert")
    chosen = subjects.sentences(texts, WORDS, WORDS, shape.vocabulary)
    activations = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0))
    title = f"{texts} texts of {WORDS} words"
    return {
        f"saliency, {title}": lambda: Saliency(model)(chosen),
        f"occlusion, {title}": lambda: Occlusion(model)(chosen),
        f"kernel_shap, {title}": lambda: KernelShap(model, n_perturbations=200)(chosen),
        f"topk_sae, {rows} rows of {WIDTH}": lambda: TopKSAEConcepts(n_concepts=N_CONCEPTS, k=16).fit(
            activations, progress=False
        ),
    }


def _measured(what: str, work: Callable[[], Any], rounds: int) -> AutologTime:
    with Clock().around_autologging():
        work()  # what is found once: the model's fingerprint, fonts, modules
    without, with_it, logging = [], [], []
    for _ in range(rounds):
        without.append(_timed(work))
        clock = Clock()
        with clock.around_autologging():
            with_it.append(_timed(work))
        logging.append(clock.seconds)
    return AutologTime(what, min(without), min(with_it), min(logging))


def _timed(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print("| work | CPU s without | CPU s with | logging CPU s | logging / work |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in measure_autolog(given.texts, given.rows, given.rounds):
        print(
            f"| {row.what} | {row.without:.2f} | {row.with_it:.2f} | {row.logging:.2f} | {row.share:.1%} |", flush=True
        )


if __name__ == "__main__":
    main()
