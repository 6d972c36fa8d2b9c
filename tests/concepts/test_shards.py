"""Files of rows: what is read is what was written, and damage is named, not read."""

from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from interpreto_mlops.concepts import ActivationSet
from interpreto_mlops.concepts.activation_writer import Statistics
from interpreto_mlops.concepts.shards import Shard, check_content, check_size, write_shard
from interpreto_mlops.errors import IntegrityError
from tests.concepts.stored import store


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_blocks_are_those_of_safetensors(dtype: torch.dtype, tmp_path: Path) -> None:
    rows = torch.randn(300, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    ids = torch.arange(300, dtype=torch.int32)
    entry = write_shard(
        tmp_path, "shard-00000.safetensors", {"activations": rows, "ids": ids, "none": ids[:, None][:, :0]}
    )
    path = tmp_path / entry["file"]
    assert entry["rows"] == 300
    assert entry["bytes"] == path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    check_content(tmp_path, entry)
    shard = Shard(path, 300)
    expected = load_file(path)
    for start, end in ((0, 300), (17, 18), (250, 300), (5, 5)):
        assert torch.equal(shard.read("activations", start, end), expected["activations"][start:end])
        assert torch.equal(shard.read("ids", start, end), expected["ids"][start:end])
    assert shard.read("none").shape == (300, 0)


def test_damage_is_named(tmp_path: Path) -> None:
    entry = write_shard(tmp_path, "shard-00003.safetensors", {"activations": torch.ones(10, 4)})
    path = tmp_path / entry["file"]
    whole = path.read_bytes()
    with pytest.raises(IntegrityError, match=r"'shard-00003.safetensors' .*: it does not hold 11 rows"):
        Shard(path, 11)
    with pytest.raises(IntegrityError, match=r"it has no 'errors'"):
        Shard(path, 10).read("errors")
    path.write_bytes(whole[:-3])
    with pytest.raises(IntegrityError, match=r"'shard-00003.safetensors' .* is truncated: it has"):
        check_size(tmp_path, entry)
    with pytest.raises(IntegrityError, match=r"'shard-00003.safetensors' .*: it is truncated"):
        Shard(path, 10).read("activations")
    for content in (
        b"",
        b"short",
        b"\xff" * 64,
        (4).to_bytes(8, "little") + b"[1]]",
        whole.replace(b"[0,160]", b"[0,150]"),
    ):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"cannot read the file 'shard-00003.safetensors'"):
            Shard(path, 10)
    path.unlink()
    with pytest.raises(IntegrityError, match=r"lacks its file 'shard-00003.safetensors'"):
        check_size(tmp_path, entry)


def test_a_changed_index_is_found(tmp_path: Path) -> None:
    store(tmp_path / "set", torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
    file = tmp_path / "set" / "index.json"
    index = json.loads(file.read_text())
    ActivationSet.open(tmp_path / "set", verify=True)
    index["statistics"]["mean"][1] += 1
    file.write_text(json.dumps(index))
    with pytest.raises(IntegrityError, match=r"the file 'index.json' of the activation set .* was changed"):
        ActivationSet.open(tmp_path / "set", verify=True)


def test_statistics_go_on_to_the_bit() -> None:
    rows = torch.randn(5000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float32) * 3 + 500
    errors = torch.rand(5000, generator=torch.Generator().manual_seed(1))
    whole, broken = Statistics(6), Statistics(6)
    for start in range(0, 5000, 1300):
        part = slice(start, start + 1300)
        whole.add(rows[part], errors[part])
        broken = Statistics(6, json.loads(json.dumps(broken.state())))
        broken.add(rows[part], errors[part])
    assert broken.state() == whole.state()
    exact, said = rows.double().numpy(), whole.summary()
    np.testing.assert_allclose(said["mean"], exact.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(said["variance"], exact.var(axis=0), rtol=1e-10)
    np.testing.assert_allclose(said["mean_norm"], np.linalg.norm(exact, axis=1).mean(), rtol=1e-13)
    lost = np.sqrt(errors.double().numpy().sum() / ((exact - exact.mean(axis=0)) ** 2).sum())
    np.testing.assert_allclose(said["store_error"], lost, rtol=1e-9)


@pytest.mark.slow
def test_shuffled_reading_takes_bounded_memory(tmp_path: Path) -> None:
    """A set of 400 MiB through a buffer of 64: nothing that was read stays, not even mapped."""
    rows = torch.zeros(200_000, 512)
    stored = store(tmp_path / "set", rows, shard_rows=20_000, rows_per_text=1000)
    del rows
    before = _resident()
    most, seen = 0.0, 0
    for block in stored.batches(4096, shuffle=True, seed=0):
        seen += len(block)
        most = max(most, _resident())
    assert seen == 200_000
    assert most - before < 200


def _resident() -> float:
    """MiB of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 3, 700])
def test_a_shard_is_the_file_that_safetensors_writes(tmp_path: Path, dtype: torch.dtype, rows: int) -> None:
    tensors = {
        "activations": torch.randn(rows, 384).to(dtype),
        "text_ids": torch.arange(rows, dtype=torch.int32),
        "spans": torch.arange(2 * rows, dtype=torch.int32).reshape(rows, 2),
    }
    entry = write_shard(tmp_path, "ours.safetensors", tensors)
    save_file(tensors, tmp_path / "theirs.safetensors")
    content = (tmp_path / "theirs.safetensors").read_bytes()
    assert (tmp_path / "ours.safetensors").read_bytes() == content
    assert entry == {
        "file": "ours.safetensors",
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "rows": rows,
    }
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".safetensors"] == []
