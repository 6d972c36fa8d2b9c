"""Tags, parameters and metrics on their way to a run: one request takes as many as there are."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

from mlflow.entities import Metric, Param, RunTag

from interpreto_mlops.errors import TrackingError
from interpreto_mlops.tracking.store import Store


class Batch:
    """What goes to a run at once, or, where it is gathered, together at the end.

    Arguments:
        store: where the run is.
        run_id: of the run.
    """

    def __init__(self, store: Store, run_id: str) -> None:
        self._store, self._run_id = store, run_id
        self._lock = threading.RLock()
        self._depth = 0
        self._tags: dict[str, str] = {}
        self._params: dict[str, str] = {}
        self._metrics: list[Metric] = []

    def add(
        self,
        action: str,
        *,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        metrics: Sequence[Metric] = (),
    ) -> None:
        """Send these, or keep them for the end of the block that gathers.

        Raises:
            TrackingError: the store fails to do the `action`.
        """
        with self._lock:
            params = params or {}
            if any(self._params.get(name, value) != value for name, value in params.items()):
                self.send("log parameters")  # it is for MLflow to refuse the other value
            self._tags |= tags or {}
            self._params |= params
            self._metrics += metrics
            if not self._depth:
                self.send(action)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Gather what is added inside, also by other threads, and send it at the end, after an error, too."""
        with self._lock:
            self._depth += 1
        try:
            yield
        except BaseException:
            with self._lock:
                self._depth -= 1
                if not self._depth:
                    # What was logged before the error is known of the run; the error is what the user must see.
                    with suppress(TrackingError):
                        self.send("log tags, parameters and metrics")
            raise
        with self._lock:
            self._depth -= 1
            if not self._depth:
                self.send("log tags, parameters and metrics")

    def send(self, action: str) -> None:
        """Send what is kept.

        Raises:
            TrackingError: the store fails to do the `action`.
        """
        with self._lock:
            tags = [RunTag(name, text) for name, text in self._tags.items()]
            params = [Param(name, text) for name, text in self._params.items()]
            metrics = self._metrics
            self._clear()
            if tags or params or metrics:
                with self._store.guarded(action):
                    self._store.client.log_batch(self._run_id, metrics=metrics, params=params, tags=tags)

    def _clear(self) -> None:
        self._tags, self._params, self._metrics = {}, {}, []
