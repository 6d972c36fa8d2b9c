"""The time of a whole training step of a TopK autoencoder over that of its five dense float32 matrix products.

`python -m benchmarks.sae_step` prints the table; `measure_steps` returns its rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from interpreto_mlops.concepts import TopKSAEConcepts
from interpreto_mlops.concepts.sae_learner import AutoencoderLearner
from interpreto_mlops.concepts.training import DataFacts

SIZES = ((384, 1024), (384, 4096), (768, 12288))
BATCH, K = 1024, 32
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, and of the five products that a dense step in float32 cannot do without.

    CPU time counts what idle threads burn while they wait for others, and wall time what other programs take: with one
    thread on a quiet machine both say the same.

    Arguments:
        width: of a row.
        n_concepts: of the autoencoder.
        threads: that torch used.
        precision: of the dense products of our step.
        step: CPU and wall seconds of our whole step: rows normalised, forward, loss, backward, projection, clipping,
            Adam, the decoder's norms, dead concepts.
        floor: CPU and wall seconds of the five products.
    """

    width: int
    n_concepts: int
    threads: int
    precision: str
    step: tuple[float, float]
    floor: tuple[float, float]

    @property
    def ratio(self) -> float:
        """The step's CPU time over the floor's."""
        return self.step[0] / self.floor[0]

    @property
    def wall_ratio(self) -> float:
        """The step's wall time over the floor's."""
        return self.step[1] / self.floor[1]


def measure_steps(
    sizes: Sequence[tuple[int, int]] = SIZES, threads: Sequence[int] = (1,), rounds: int = 15
) -> list[StepTime]:
    """Time steps and floors in turn, so that both meet the same machine; the least of the rounds counts."""
    before = torch.get_num_threads()
    try:
        return [row for n in threads for width, concepts in sizes for row in _measure(width, concepts, n, rounds)]
    finally:
        torch.set_num_threads(before)


def _measure(width: int, n_concepts: int, threads: int, rounds: int) -> list[StepTime]:
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(BATCH, width, generator=generator) @ torch.randn(width, width, generator=generator)
    steps = {precision: _step(rows, n_concepts, precision) for precision in PRECISIONS}
    floor = _floor(rows, n_concepts)
    calls = {"floor": floor, **steps}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            times[name].append(_seconds(call))
    # The first round warms up.
    least = {
        name: (min(cpu for cpu, _ in found[1:]), min(wall for _, wall in found[1:])) for name, found in times.items()
    }
    return [StepTime(width, n_concepts, threads, each, least[each], least["floor"]) for each in PRECISIONS]


def _step(rows: torch.Tensor, n_concepts: int, precision: str) -> Callable[[], object]:
    parameters = TopKSAEConcepts(
        n_concepts=n_concepts,
        k=K,
        batch_size=len(rows),
        precision=precision,
        validation_share=0.0,
        dead_after=10**9,
        log_every=10**9,
        n_epochs=10**6,
    )
    facts = DataFacts(10**6, rows.double().mean(0).numpy(), rows.double().var(0, correction=0).numpy())
    learner: AutoencoderLearner = parameters.begin(facts)
    return lambda: learner.observe(rows)


def _floor(rows: torch.Tensor, n_concepts: int) -> Callable[[], object]:
    """Encoding, decoding, and the gradients of codes, decoder and encoder, each into memory that is there."""
    width = rows.shape[1]
    encoder, decoder = torch.randn(n_concepts, width), torch.randn(n_concepts, width)
    codes, of_codes = torch.empty(len(rows), n_concepts), torch.empty(len(rows), n_concepts)
    decoded, of_encoder, of_decoder = torch.empty_like(rows), torch.empty_like(encoder), torch.empty_like(decoder)

    def products() -> None:
        torch.mm(rows, encoder.T, out=codes)
        torch.mm(codes, decoder, out=decoded)
        torch.mm(decoded, decoder.T, out=of_codes)
        torch.mm(codes.T, decoded, out=of_decoder)
        torch.mm(of_codes.T, rows, out=of_encoder)

    return products


def _seconds(call: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    """Print a table of the ratios."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--threads", type=int, nargs="+", default=[1])
    options.add_argument("--rounds", type=int, default=15)
    given = options.parse_args()
    print("| width | concepts | threads | precision | step, CPU ms | floor, CPU ms | ratio | ratio of wall times |")
    print(f"|{8 * ' --- |'}")
    for row in measure_steps(threads=given.threads, rounds=given.rounds):
        cells = f"{row.width} | {row.n_concepts} | {row.threads} | {row.precision}"
        numbers = f"{1e3 * row.step[0]:.1f} | {1e3 * row.floor[0]:.1f} | {row.ratio:.2f} | {row.wall_ratio:.2f}"
        print(f"| {cells} | {numbers} |")


if __name__ == "__main__":
    main()
