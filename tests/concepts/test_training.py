"""One pass trains many: each block is read once a pass, whatever the number of dictionaries."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from interpreto_mlops.concepts import PCAConcepts, TopKSAEConcepts, fit_together
from interpreto_mlops.concepts.training import as_rows
from interpreto_mlops.errors import InputError

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
