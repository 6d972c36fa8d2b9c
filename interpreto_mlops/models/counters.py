"""What the engine counts while it runs a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter


@dataclass
class EngineCounters:
    """What the engine did: these are the `cost/…` metrics of a run.

    `evaluations_asked` counts rows that methods asked for, `evaluations_run` those that the model saw; `tokens` and
    `padding` count positions that the model computed (those of a reused prefix it does not); `seconds` is the time
    inside the model.
    """

    evaluations_asked: int = 0
    evaluations_run: int = 0
    batches: int = 0
    tokens: int = 0
    padding: int = 0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the counters by name, with `tokens_per_second`."""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return {**{key: float(value) for key, value in asdict(self).items()}, "tokens_per_second": rate}

    def since(self, before: EngineCounters) -> EngineCounters:
        """Return what was counted after `before` was copied."""
        now, then = asdict(self), asdict(before)
        return EngineCounters(**{key: now[key] - then[key] for key in now})

    def copy(self) -> EngineCounters:
        """Return the counters as they stand."""
        return EngineCounters(**asdict(self))

    @contextmanager
    def timed(self, lengths: Sequence[int]) -> Iterator[None]:
        """Count a batch of rows, by the positions that are computed of each, unless it fails."""
        start = perf_counter()
        yield
        self.seconds += perf_counter() - start
        self.batches += 1
        self.evaluations_run += len(lengths)
        self.tokens += sum(lengths)
        self.padding += len(lengths) * max(lengths) - sum(lengths)
