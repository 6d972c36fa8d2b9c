"""One pass trains many: each block is read once a pass, whatever the number of dictionaries."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from interpreto_mlops.concepts import PCAConcepts, TopKSAEConcepts, fit_together
from interpreto_mlops.concepts.activations import ActivationSet
from interpreto_mlops.concepts.learner import History, Learner, State
from interpreto_mlops.concepts.rows import DataFacts, as_rows, read_ahead
from interpreto_mlops.errors import InputError
from tests.concepts.stored import store

ROWS = torch.randn(900, 10, generator=torch.Generator().manual_seed(0)) + 2.0


class Counted:
    """Rows that count how often they are read."""

    def __init__(self) -> None:
        self._rows = as_rows(ROWS)
        self.width, self.provenance = 10, {"layer": "l", "nested": {"a": [1]}}
        self.mean, self.variance = self._rows.mean, self._rows.variance
        self.seeds: list[int] = []

    def __len__(self) -> int:
        return len(ROWS)

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0, skip: int = 0) -> Iterator[torch.Tensor]:
        assert shuffle
        self.seeds.append(seed)
        return self._rows.batches(size, shuffle=shuffle, seed=seed, skip=skip)


def family(seed: int = 0) -> TopKSAEConcepts:
    return TopKSAEConcepts(n_concepts=12, k=2, n_epochs=3, batch_size=50, seed=seed)


def test_every_pass_reads_the_rows_once_for_all() -> None:
    rows = Counted()
    company = [PCAConcepts(n_concepts=2), family(), family(1), TopKSAEConcepts(n_concepts=5, k=1, n_epochs=2)]
    fitted = fit_together(company, rows, progress=False)
    assert rows.seeds == [0, 1, 2]
    assert all(a is b for a, b in zip(fitted, company, strict=True))
    assert [len(dictionary.history_) for dictionary in fitted] == [0, 3, 3, 2]
    assert all(dictionary.provenance == rows.provenance for dictionary in fitted)
    fitted[0].provenance["nested"]["a"].append(2)
    assert rows.provenance["nested"] == fitted[1].provenance["nested"] == {"a": [1]}


def test_another_order_gives_another_dictionary() -> None:
    first, second = (fit_together([family()], ROWS, order_seed=seed, progress=False)[0] for seed in (0, 10))
    assert not torch.equal(first.dictionary, second.dictionary)


def test_another_seed_gives_another_dictionary() -> None:
    first, second = fit_together([family(), family(1)], ROWS, progress=False)
    assert not torch.equal(first.dictionary, second.dictionary)


def test_shuffling_shows_every_row_once() -> None:
    shown = torch.cat(list(as_rows(ROWS).batches(64, shuffle=True, seed=3)))
    assert not torch.equal(shown, ROWS)
    assert torch.equal(shown.sort(dim=0).values, ROWS.sort(dim=0).values)
    assert torch.equal(torch.cat(list(as_rows(ROWS).batches(64))), ROWS)


def test_the_rows_are_not_changed() -> None:
    rows = ROWS.clone().requires_grad_(True)
    fit_together([PCAConcepts(n_concepts=2), family()], rows, progress=False)
    assert torch.equal(rows, ROWS)
    assert rows.grad is None


def test_the_progress_bar_is_shown_when_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    fit_together([family()], ROWS, progress=True)
    assert "dictionaries" in capfd.readouterr().err
    fit_together([family()], ROWS)
    fit_together([family()], ROWS, progress=False)
    assert capfd.readouterr().err == ""


def test_one_bad_dictionary_stops_all_before_any_training() -> None:
    rows = Counted()
    good = family()
    with pytest.raises(InputError, match="width 10 has no more components"):
        fit_together([good, PCAConcepts(n_concepts=11)], rows, progress=False)
    assert rows.seeds == []
    assert not good.is_fitted


class Talker(Learner):
    """Says something after every block, and wants no more when a number of blocks has gone by."""

    n_passes = 5

    def __init__(self, enough: int) -> None:
        self.enough, self.seen = enough, 0
        self._news: History = []

    @property
    def stopped(self) -> bool:
        return self.seen >= self.enough

    def observe(self, block: torch.Tensor) -> None:
        self.seen += 1
        self._news.append({"step": self.seen, "train/r2": self.seen / 10, "train/l0": 2.0})

    def news(self) -> History:
        news, self._news = self._news, []
        return news

    def state(self) -> State:
        return {"seen": torch.tensor(self.seen)}

    def restore(self, state: State) -> None:
        self.seen = int(state["seen"])

    def finish(self) -> State:
        self._news.append({"step": 100})
        return self.state()


class Silent(Talker):
    def news(self) -> History:
        return []


class Talk:
    """A dictionary that learns nothing but how many blocks there were."""

    name: ClassVar[str] = "talk"

    def __init__(self, enough: int = 1000) -> None:
        self.parameters = {"enough": enough}
        self.history: History = []

    def begin(self, facts: DataFacts) -> Learner:
        return Talker(self.parameters["enough"])

    def complete(self, weights: State, history: History, provenance: Mapping[str, Any]) -> None:
        self.seen, self.history = int(weights["seen"]), history


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks a pass."""
    monkeypatch.setattr("interpreto_mlops.concepts.training._BLOCK_ROWS", 300)


@pytest.mark.usefixtures("small_blocks")
def test_news_is_told_block_by_block_and_kept() -> None:
    told: list[tuple[int, dict[str, float]]] = []
    reads: list[int] = []

    def listener(place: int, line: dict[str, float]) -> None:
        told.append((place, dict(line)))
        reads.append(quiet.seen_by_now())
        line.clear()  # what is told is the listener's

    class Quiet(Talk):
        def begin(self, facts: DataFacts) -> Learner:
            self.learner = Silent(1000)
            return self.learner

        def seen_by_now(self) -> int:
            return self.learner.seen

    talk, quiet = Talk(3), Quiet()
    fit_together([quiet, talk], ROWS, progress=False, listener=listener)
    assert [line["step"] for line in talk.history] == [1, 2, 3, 100]
    assert told == [(1, line) for line in talk.history]
    # The listener heard of each block before the next one was shown.
    assert reads == [1, 2, 3, 15]
    assert quiet.history == []


@pytest.mark.usefixtures("small_blocks")
def test_what_a_listener_raises_ends_the_fit_and_fits_nothing() -> None:
    def listener(place: int, line: dict[str, float]) -> None:
        raise OSError("no server")

    dictionaries = [PCAConcepts(n_concepts=2), family()]
    with pytest.raises(OSError, match="no server"):
        fit_together(dictionaries, ROWS, progress=False, listener=listener)
    assert not any(dictionary.is_fitted for dictionary in dictionaries)


@pytest.mark.usefixtures("small_blocks")
def test_reading_ends_when_all_have_enough(capfd: pytest.CaptureFixture[str]) -> None:
    rows = Counted()
    early, late = Talk(2), Talk(4)
    fit_together([early, late], rows, progress=True)
    # One that wants no further pass is left alone while others go on.
    assert (early.seen, late.seen, rows.seeds) == (3, 6, [0, 1])
    shown = capfd.readouterr().err
    assert "1.80k/1.80k" in shown
    assert "r2=0.3–0.6, l0=2" in shown


def test_rows_are_read_ahead_in_order_and_errors_come_in_their_place() -> None:
    readers = set()

    def blocks() -> Iterator[torch.Tensor]:
        for number in range(3):
            readers.add(threading.current_thread())
            yield torch.tensor([number])
        raise OSError("the disk is gone")

    ahead = read_ahead(blocks())
    assert [int(next(ahead)) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
    assert len(readers) == 1
    assert threading.current_thread() not in readers
    assert not any(reader.is_alive() for reader in readers)


def test_a_reader_that_is_left_alone_ends() -> None:
    before = threading.active_count()
    ahead = read_ahead(as_rows(ROWS).batches(10))
    next(ahead)
    ahead.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("shuffle", [False, True])
def test_skipped_batches_leave_the_others_as_they_were(shuffle: bool) -> None:
    whole = list(as_rows(ROWS).batches(400, shuffle=shuffle, seed=3))
    for skip in range(5):
        rest = list(as_rows(ROWS).batches(400, shuffle=shuffle, seed=3, skip=skip))
        assert len(rest) == max(0, 3 - skip)
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[skip:], strict=True))


@pytest.mark.parametrize("shuffle", [False, True])
def test_skipped_batches_of_a_set_are_not_read(shuffle: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = store(tmp_path / "set", ROWS.repeat(3, 1), shard_rows=1000)
    monkeypatch.setattr("interpreto_mlops.concepts.activations._BUFFER_BYTES", 600 * 4 * stored.width)
    whole = list(stored.batches(250, shuffle=shuffle, seed=5))
    read: list[int] = []
    take = ActivationSet._rows
    monkeypatch.setattr(
        ActivationSet, "_rows", lambda self, *where: read.append(where[2] - where[1]) or take(self, *where)
    )
    for skip in (0, 1, 4, 9, 10, 11, 20):
        read.clear()
        rest = list(stored.batches(250, shuffle=shuffle, seed=5, skip=skip))
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[skip:], strict=True))
        assert sum(read) <= max(0, 2700 - 250 * skip + 600)


def test_a_bad_row_of_a_set_is_named_with_its_text(tmp_path: Path) -> None:
    broken = ROWS.clone()
    broken[700, 3] = float("inf")
    bad = store(tmp_path / "bad", broken, rows_per_text=50)
    message = "row 700 of the activations (text 14: 'this is text 14') is NaN or infinite"
    with pytest.raises(InputError, match=re.escape(message)):
        fit_together([family()], bad, progress=False)
    with pytest.raises(InputError, match=re.escape(message)):
        PCAConcepts(n_concepts=2).fit(ROWS, progress=False).encode(bad)
    # The mean of an index can be finite where the rows are not: a shard was damaged after the harvest.
    bad.mean, bad.variance = as_rows(ROWS).mean, as_rows(ROWS).variance
    with pytest.raises(InputError, match=re.escape(message)):
        fit_together([family()], bad, progress=False)


@pytest.mark.parametrize("every", [0, -5, 2.5, True])
def test_checkpoints_after_no_rows_are_refused(every: Any) -> None:
    with pytest.raises(InputError, match=f"checkpoint_every must be a whole number of at least 1, not {every!r}"):
        fit_together([family()], ROWS, checkpoint_every=every)
