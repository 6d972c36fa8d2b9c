"""A training that is killed goes on from its checkpoint and ends at the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from interpreto_mlops.concepts import ConceptDictionary, PCAConcepts, TopKSAEConcepts, fit_together
from interpreto_mlops.concepts.activations import ActivationSet
from interpreto_mlops.concepts.learner import State
from interpreto_mlops.concepts.rows import as_rows
from interpreto_mlops.errors import InputError, IntegrityError
from tests.concepts.stored import store

ROWS = torch.randn(900, 10, generator=torch.Generator().manual_seed(0)) + 2.0
BLOCK = 200
N_BLOCKS, N_PASSES = 5, 3
EVERY_BLOCK = 1


class PowerCut(Exception):
    """The end of a process, as far as one process can know it."""


class Cut:
    """Rows that are gone after some blocks; it counts what is read."""

    def __init__(self, blocks_left: int | None, rows: torch.Tensor = ROWS, **provenance: Any) -> None:
        self._rows, self._left = as_rows(rows), blocks_left
        self.width, self.provenance = rows.shape[1], provenance
        self.mean, self.variance = self._rows.mean, self._rows.variance
        self.read = 0

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, size: int, *, shuffle: bool = False, seed: int = 0, skip: int = 0) -> Iterator[torch.Tensor]:
        for block in self._rows.batches(size, shuffle=shuffle, seed=seed, skip=skip):
            if self._left is not None and shuffle and self.read == self._left:
                raise PowerCut
            self.read += shuffle
            yield block


def company() -> list[ConceptDictionary]:
    parameters: dict[str, Any] = {"batch_size": 50, "n_epochs": N_PASSES}
    return [
        PCAConcepts(n_concepts=3),
        TopKSAEConcepts(n_concepts=12, k=2, **parameters),
        TopKSAEConcepts(n_concepts=6, k=1, seed=1, **{**parameters, "n_epochs": 2}),
    ]


def same(one: list[ConceptDictionary], other: list[ConceptDictionary]) -> bool:
    def content(dictionary: ConceptDictionary) -> tuple[dict[str, bytes], str]:
        weights = {name: tensor.numpy().tobytes() for name, tensor in dictionary.weights.items()}
        return weights, json.dumps(dictionary.history_)

    return [content(dictionary) for dictionary in one] == [content(dictionary) for dictionary in other]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interpreto_mlops.concepts.training._BLOCK_ROWS", BLOCK)


@pytest.fixture(scope="module")
def undisturbed() -> list[ConceptDictionary]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("interpreto_mlops.concepts.training._BLOCK_ROWS", BLOCK)
        return fit_together(company(), ROWS, order_seed=4, progress=False)


def interrupted(folder: Path, blocks: int, every: int = EVERY_BLOCK) -> None:
    with pytest.raises(PowerCut):
        fit_together(company(), Cut(blocks), order_seed=4, progress=False, checkpoint=folder, checkpoint_every=every)


@pytest.mark.parametrize("blocks", range(1, N_BLOCKS * N_PASSES))
def test_after_any_block_training_goes_on_to_the_same_bits(
    blocks: int, tmp_path: Path, undisturbed: list[ConceptDictionary]
) -> None:
    folder = tmp_path / "a" / "checkpoint"
    interrupted(folder, blocks)
    rest = Cut(None)
    resumed = fit_together(company(), rest, order_seed=4, progress=False, checkpoint=folder)
    assert same(resumed, undisturbed)
    assert rest.read == N_BLOCKS * N_PASSES - blocks  # nothing is learned twice, and what is skipped is not read
    assert not folder.exists()


def test_work_since_the_last_checkpoint_is_done_again(tmp_path: Path, undisturbed: list[ConceptDictionary]) -> None:
    interrupted(tmp_path, 8, every=2 * BLOCK + 1)  # written after blocks 3 and 6, for the fifth has 100 rows
    rest = Cut(None)
    resumed = fit_together(company(), rest, order_seed=4, progress=False, checkpoint=tmp_path)
    assert same(resumed, undisturbed)
    assert rest.read == N_BLOCKS * N_PASSES - 6


def test_it_can_be_interrupted_many_times(tmp_path: Path, undisturbed: list[ConceptDictionary]) -> None:
    for _ in range(4):
        interrupted(tmp_path, 3)
    assert same(fit_together(company(), ROWS, order_seed=4, progress=False, checkpoint=tmp_path), undisturbed)


def test_checkpoints_change_nothing_and_leave_nothing(tmp_path: Path, undisturbed: list[ConceptDictionary]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    kept = fit_together(
        company(), ROWS, order_seed=4, progress=False, checkpoint=str(tmp_path), checkpoint_every=EVERY_BLOCK
    )
    assert same(kept, undisturbed)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_all_passes_done_need_no_row_again(
    tmp_path: Path, undisturbed: list[ConceptDictionary], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> State:
        raise PowerCut

    with monkeypatch.context() as patch, pytest.raises(PowerCut):
        patch.setattr("interpreto_mlops.concepts.autoencoder.AutoencoderLearner.finish", fail)
        fit_together(company(), ROWS, order_seed=4, progress=False, checkpoint=tmp_path)
    rest = Cut(None)
    assert same(fit_together(company(), rest, order_seed=4, progress=False, checkpoint=tmp_path), undisturbed)
    assert rest.read == 0


def test_lines_that_the_checkpoint_knows_are_not_told_again(tmp_path: Path) -> None:
    told: list[tuple[int, dict[str, float]]] = []
    options: dict[str, Any] = {
        "order_seed": 4, "progress": False, "checkpoint": tmp_path, "checkpoint_every": EVERY_BLOCK,
        "listener": lambda place, line: told.append((place, line)),
    }  # fmt: skip
    with pytest.raises(PowerCut):
        fit_together(company(), Cut(N_BLOCKS + 1), **options)
    assert {place for place, _ in told} == {1, 2}
    assert len(told) == 2
    resumed = fit_together(company(), ROWS, **options)
    for place, dictionary in enumerate(resumed):
        assert [line for whose, line in told if whose == place] == dictionary.history_
    assert [len(dictionary.history_) for dictionary in resumed] == [0, 3, 2]


def test_a_single_dictionary_takes_the_same_arguments(tmp_path: Path) -> None:
    def make() -> TopKSAEConcepts:
        return TopKSAEConcepts(n_concepts=6, k=1, n_epochs=2, batch_size=50)

    told: list[dict[str, float]] = []
    with pytest.raises(PowerCut):
        make().fit(Cut(7), order_seed=9, progress=False, checkpoint=tmp_path, checkpoint_every=EVERY_BLOCK)
    resumed = make().fit(
        ROWS, order_seed=9, progress=False, checkpoint=tmp_path, listener=lambda place, line: told.append(line)
    )
    assert same([resumed], [make().fit(ROWS, order_seed=9, progress=False)])
    assert told == resumed.history_[1:]


def other_parameters() -> list[ConceptDictionary]:
    dictionaries = company()
    dictionaries[1] = TopKSAEConcepts(n_concepts=12, k=3, batch_size=50, n_epochs=N_PASSES)
    return dictionaries


@pytest.mark.parametrize(
    ("dictionaries", "rows", "order_seed", "message"),
    [
        (other_parameters, ROWS, 4, r"training: dictionaries\.1\.parameters\.k is 2 in it and 3 here; give another"),
        (lambda: company()[:2], ROWS, 4, "there are 3 dictionaries in it and 2 here"),
        (lambda: [*company()[1:], PCAConcepts(n_concepts=3)], ROWS, 4, r"dictionaries\.0\.method is 'pca' in it and"),
        (company, ROWS, 5, "order_seed is 4 in it and 5 here"),
        (company, ROWS[:800], 4, r"activations\.rows is 900 in it and 800 here"),
        (company, ROWS.flip(0), 4, r"activations\.sha256 is '\w+' in it"),
        (company, Cut(None, model={"fingerprint": "b"}), 4, r"activations\.model is None in it and 'b' here"),
        (company, Cut(None, layer="l2"), 4, r"activations\.layer is None in it and 'l2' here"),
    ],
)  # fmt: skip
def test_the_checkpoint_of_another_training_is_refused(
    dictionaries: Any, rows: Any, order_seed: int, message: str, tmp_path: Path
) -> None:
    interrupted(tmp_path, 4)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message):
        fit_together(dictionaries(), rows, order_seed=order_seed, progress=False, checkpoint=tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_there_is_one_whole_checkpoint_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from interpreto_mlops.concepts import checkpoints

    seen: list[set[str]] = []
    replace = Path.replace

    def watched(self: Path, target: Path) -> Path:
        done = replace(self, target)
        index = tmp_path / "checkpoint.json"
        files = {file.name for file in tmp_path.iterdir()}
        if index.exists():
            assert json.loads(index.read_text())["file"] in files
        seen.append(files)
        return done

    monkeypatch.setattr(checkpoints.Path, "replace", watched)
    interrupted(tmp_path, 4)
    assert len(seen) == 8
    assert len(list(tmp_path.iterdir())) == 2


def test_a_write_that_fails_leaves_the_last_checkpoint(
    tmp_path: Path, undisturbed: list[ConceptDictionary], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, 4)

    def fail(tensors: State, path: Path) -> None:
        path.write_bytes(b"half of i")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr("interpreto_mlops.concepts.checkpoints.save_file", fail)
        fit_together(company(), ROWS, order_seed=4, progress=False, checkpoint=tmp_path, checkpoint_every=EVERY_BLOCK)
    rest = Cut(None)
    resumed = fit_together(company(), rest, order_seed=4, progress=False, checkpoint=tmp_path)
    assert same(resumed, undisturbed)
    assert rest.read == N_BLOCKS * N_PASSES - 4
    assert not tmp_path.exists()


def damage_bytes(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def truncate(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])


def lose(folder: Path) -> None:
    (file,) = folder.glob("*.safetensors")
    file.unlink()


def edit_index(**changes: Any) -> Any:
    def edit(folder: Path) -> None:
        index = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps({**index, **changes}))

    return edit


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (damage_bytes, r"the checkpoint's file '.*learners-.*\.safetensors' was changed or damaged"),
        (truncate, r"the checkpoint's file '.*learners-.*\.safetensors' was changed or damaged"),
        (lose, r"cannot read the checkpoint's file '.*learners-.*\.safetensors'"),
        (lambda folder: (folder / "checkpoint.json").write_text("{"), r"checkpoint '.*checkpoint\.json' is damaged"),
        (lambda folder: (folder / "checkpoint.json").write_text("[]"), r"checkpoint '.*checkpoint\.json' is damaged"),
        (edit_index(position={"passes": 1, "depth": 2}), r"checkpoint '.*checkpoint\.json' is damaged: .*depth"),
        (edit_index(schema="training-checkpoint/9"), "has the schema 'training-checkpoint/9', not"),
    ],
)
def test_a_damaged_checkpoint_is_named(harm: Any, message: str, tmp_path: Path) -> None:
    interrupted(tmp_path, 4)
    harm(tmp_path)
    with pytest.raises(IntegrityError, match=message):
        fit_together(company(), ROWS, order_seed=4, progress=False, checkpoint=tmp_path)


def test_a_state_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            "interpreto_mlops.concepts.autoencoder.AutoencoderLearner.state", lambda self: {"w": torch.zeros(2)}
        )
        interrupted(tmp_path, 4)
    with pytest.raises(IntegrityError, match=r"is not what this version of the program writes: 'weight\.\w+'"):
        fit_together(company(), ROWS, order_seed=4, progress=False, checkpoint=tmp_path)


VICTIM = """
import sys, torch
import interpreto_mlops.concepts.training as training
from interpreto_mlops.concepts import ActivationSet
from tests.concepts.test_checkpoints import long_company
training._BLOCK_ROWS = 200
training.fit_together(
    long_company(), ActivationSet(sys.argv[1]), progress=False, checkpoint=sys.argv[2], checkpoint_every=1
)
"""


def long_company() -> list[ConceptDictionary]:
    return [
        PCAConcepts(n_concepts=3),
        TopKSAEConcepts(n_concepts=12, k=2, n_epochs=40, batch_size=20),
        TopKSAEConcepts(n_concepts=9, k=3, n_epochs=40, batch_size=50, seed=2),
    ]


def passes_done(folder: Path) -> int:
    try:
        return int(json.loads((folder / "checkpoint.json").read_text())["position"]["passes"])
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_a_killed_process_is_taken_up_by_the_next(tmp_path: Path) -> None:
    stored, folder = store(tmp_path / "set", ROWS, provenance={"layer": "layer.1"}), tmp_path / "checkpoint"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    victim = subprocess.Popen([sys.executable, "-c", VICTIM, str(stored.path), str(folder)], cwd=root, env=environment)
    try:
        while passes_done(folder) < 4:
            assert victim.poll() is None, "it ended before it was killed"
            time.sleep(0.01)
    finally:
        victim.send_signal(signal.SIGKILL)
        assert victim.wait() == -signal.SIGKILL
    assert 4 <= passes_done(folder) < 40
    lines: list[dict[str, float]] = []
    resumed = fit_together(
        long_company(),
        ActivationSet(stored.path),
        progress=False,
        checkpoint=folder,
        listener=lambda place, line: lines.append(line) if place == 1 else None,
    )
    assert 0 < len(lines) < len(resumed[1].history_)
    assert lines == resumed[1].history_[-len(lines) :]
    assert same(resumed, fit_together(long_company(), stored, progress=False))
    assert not folder.exists()
