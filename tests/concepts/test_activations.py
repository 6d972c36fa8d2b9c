from __future__ import annotations

import copy
import gc
import json
import shutil
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from interpreto_mlops.concepts.activations import ActivationSet, ActivationWriter
from interpreto_mlops.concepts.split import GRANULARITIES, ModelWithSplitPoints
from interpreto_mlops.errors import DataError, InputError, IntegrityError, ModelOutputError, UnknownNameError
from interpreto_mlops.models.splitting import ENGINES
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset

MakeModel = Callable[..., TextModel]


def reference_rows(model: TextModel, path: str, texts: list[str], granularity: str) -> list[tuple[int, np.ndarray]]:
    """One text at a time, one row at a time: (text, activations)."""
    rows = []
    kept: list[torch.Tensor] = []
    handle = model.model.get_submodule(path).register_forward_hook(lambda _m, _a, output: kept.append(output))
    for index, text in enumerate(texts):
        ids = model.tokenizer(text, return_tensors="pt")["input_ids"]
        if ids.shape[1] == 0:
            continue
        with torch.no_grad():
            model.model(input_ids=ids.long())
        hidden = kept.pop()[0].numpy()
        special = {model.tokenizer.convert_tokens_to_ids(token) for token in ("[CLS]", "[SEP]", "[PAD]", "[MASK]")}
        inner = [i for i, token in enumerate(ids[0].tolist()) if token not in special]
        if granularity == "all_tokens":
            rows += [(index, row) for row in hidden]
        elif granularity == "cls":
            rows.append((index, hidden[0]))
        elif granularity == "sample":
            rows += [(index, hidden[inner].mean(axis=0))] if inner else []
        else:  # the tokenizer splits at white space and punctuation, so that a token is a word
            rows += [(index, hidden[i]) for i in inner]
    handle.remove()
    return rows


MIXED = ["", "The food was great !", "xyzzy soup", "   ", "We loved it , but the place was cold .", "again"]


@pytest.mark.parametrize("granularity", ["token", "all_tokens", "cls", "sample", "word"])
@pytest.mark.parametrize(("architecture", "engine"), [("bert", "nnsight"), ("bert", "hooks"), ("llama", "nnsight")])
def test_rows_are_those_of_each_text_alone(
    architecture: str, engine: str, granularity: str, tiny_model: MakeModel
) -> None:
    model = tiny_model(architecture)
    split = ModelWithSplitPoints(model, split_points=[0, -1], engine=engine)
    sets = split.get_activations(MIXED, granularity=granularity)
    assert list(sets) == [0, -1]
    for layer, activations in sets.items():
        path = split.points[layer]
        expected = reference_rows(model, path, MIXED, granularity)
        assert activations.layer == path
        assert activations.shape == (len(expected), 32)
        assert activations.text_ids.tolist() == [index for index, _ in expected]
        rows = activations.tensor()
        assert rows.dtype == torch.float32
        np.testing.assert_allclose(rows, np.stack([row for _, row in expected]), atol=1e-5, rtol=1e-5)
        assert activations.texts == tuple(MIXED)
        activations.verify()


def test_columns_lead_back_to_the_text(tiny_model: MakeModel) -> None:
    model = tiny_model("bert")
    texts = ["", "The Food was great!", "Soup ."]
    (tokens,) = ModelWithSplitPoints(model, [1]).get_activations(texts).values()
    strings = [
        tokens.texts[i][start:end] for i, (start, end) in zip(tokens.text_ids, tokens.spans.tolist(), strict=True)
    ]
    assert strings == ["The", "Food", "was", "great", "!", "Soup", "."]
    assert tokens.positions.tolist() == [1, 2, 3, 4, 5, 1, 2]
    assert model.tokenizer.convert_ids_to_tokens(tokens.token_ids.tolist()) == [s.lower() for s in strings]
    assert all(array.dtype == np.int64 for array in (tokens.text_ids, tokens.positions, tokens.token_ids, tokens.spans))
    (every,) = ModelWithSplitPoints(model, [1]).get_activations(texts, granularity="all_tokens").values()
    assert every.token_ids.tolist()[:2] == [2, 3]
    assert every.spans.tolist()[:4] == [[0, 0], [0, 0], [0, 0], [0, 3]]
    (samples,) = ModelWithSplitPoints(model, [1]).get_activations(texts, granularity="sample").values()
    assert samples.spans.tolist() == [[0, 19], [0, 6]]
    assert samples.text_ids.tolist() == [1, 2]


def test_words_and_sentences_are_means_of_their_tokens(cebab_model: TextModel, cebab_reviews: pd.DataFrame) -> None:
    texts = cebab_reviews["text"].tolist()[:12]
    split = ModelWithSplitPoints(cebab_model, [0])
    (tokens,) = split.get_activations(texts).values()
    rows = tokens.tensor().double().numpy()
    for granularity in ("word", "sentence"):
        (wholes,) = split.get_activations(texts, granularity=granularity).values()
        assert len(wholes) < len(tokens)
        for row, text_id, (start, end) in zip(wholes.tensor().numpy(), wholes.text_ids, wholes.spans, strict=True):
            inside = (tokens.text_ids == text_id) & (tokens.spans[:, 0] >= start) & (tokens.spans[:, 1] <= end)
            np.testing.assert_allclose(row, rows[inside].mean(axis=0), atol=1e-5, rtol=1e-4)
        first = {(t, p) for t, p in zip(wholes.text_ids.tolist(), wholes.positions.tolist(), strict=True)}
        assert first <= set(zip(tokens.text_ids.tolist(), tokens.positions.tolist(), strict=True))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_batches_of_the_model_do_not_matter(
    granularity: str, cebab_model: TextModel, cebab_reviews: pd.DataFrame
) -> None:
    texts = cebab_reviews["text"].tolist()[:24]
    split = ModelWithSplitPoints(cebab_model, [-1], engine="hooks")
    (one,) = split.get_activations(texts, granularity=granularity, token_budget=1).values()
    (many,) = split.get_activations(texts, granularity=granularity).values()
    torch.testing.assert_close(one.tensor(), many.tensor(), atol=1e-5, rtol=1e-5)
    for name in ("text_ids", "positions", "token_ids", "spans"):
        assert np.array_equal(getattr(one, name), getattr(many, name))


def test_statistics_are_those_of_the_rows(cebab_model: TextModel, cebab_reviews: pd.DataFrame) -> None:
    texts = cebab_reviews["text"].tolist()[:40]
    (activations,) = ModelWithSplitPoints(cebab_model, [0]).get_activations(texts, token_budget=64).values()
    rows = activations.tensor().double().numpy()
    np.testing.assert_allclose(activations.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(activations.variance, rows.var(axis=0), rtol=1e-10)
    np.testing.assert_allclose(activations.second_moment, (rows**2).mean(axis=0), rtol=1e-10)


def write(folder: Path, rows: torch.Tensor, *, dtype: str = "float32", shard_rows: int = 700) -> ActivationSet:
    """A set of given rows, in pieces of uneven size, in small shards."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    size = rows.shape[1] * (4 if dtype == "float32" else 2)
    writer = ActivationWriter(folder, "layer", "token", rows.shape[1], dtype, shard_bytes=shard_rows * size)
    for start in range(0, len(rows), 451):
        piece = rows[start : start + 451]
        ids = np.arange(start, start + len(piece), dtype=np.int32)
        columns = {
            "text_ids": ids,
            "positions": ids + 1,
            "token_ids": ids + 2,
            "spans": np.stack([ids, ids + 3], axis=1),
        }
        writer.add(piece, columns)
    texts = folder.parent / "texts"
    texts.write_text('"a"\n')
    writer.close(texts, {"model": {"name": "none"}})
    return ActivationSet.open(folder)


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(3000, 6, generator=torch.Generator().manual_seed(0)) + 1000


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_shards_hold_the_rows_in_order(dtype: str, rows: torch.Tensor, tmp_path: Path) -> None:
    activations = write(tmp_path / "set", rows, dtype=dtype)
    stored = rows.to(getattr(torch, dtype)).float()
    assert torch.equal(activations.tensor(), stored)
    assert torch.equal(torch.cat(list(activations.batches(128))), stored)
    assert activations.text_ids.tolist() == list(range(3000))
    assert activations.spans.tolist() == [[i, i + 3] for i in range(3000)]
    assert activations.dtype == dtype
    assert len(activations) == 3000
    files = sorted(path.name for path in (tmp_path / "set").iterdir())
    assert files == ["index.json", *(f"shard-0000{i}.safetensors" for i in range(5)), "texts.jsonl"]
    # A mean of a thousand times the deviation would cost most digits of E[x²] − E[x]².
    np.testing.assert_allclose(activations.variance, stored.double().numpy().var(axis=0), rtol=1e-10)


@pytest.mark.parametrize("size", [1, 100, 256, 3000, 5000])
def test_shuffled_batches_have_every_row_once(
    size: int, rows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Room for 1024 rows, so that an epoch has several buffers.
    monkeypatch.setattr("interpreto_mlops.concepts.activations._BUFFER_BYTES", 1024 * 6 * 4)
    activations = write(tmp_path / "set", rows)
    batches = list(activations.batches(size, shuffle=True, seed=3))
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    together = torch.cat(batches)
    assert sorted(together.tolist()) == sorted(rows.tolist())
    again = torch.cat(list(activations.batches(size, shuffle=True, seed=3)))
    assert torch.equal(together, again)
    other = torch.cat(list(activations.batches(size, shuffle=True, seed=4)))
    assert not torch.equal(together, other)
    # Well mixed: neighbours of the first buffer come from all over the set.
    places = {tuple(row.tolist()): i for i, row in enumerate(rows)}
    head = [places[tuple(row.tolist())] for row in together[:256]]
    assert np.abs(np.diff(head)).mean() > 300


def test_batches_can_be_changed_without_harm(rows: torch.Tensor, tmp_path: Path) -> None:
    activations = write(tmp_path / "set", rows)
    for batch in activations.batches(100):
        batch.zero_()
    activations.tensor().zero_()
    assert torch.equal(activations.tensor(), rows)
    with pytest.raises(InputError, match="at least 1, not 0"):
        next(activations.batches(0))


def test_verify_names_the_file_that_was_changed(rows: torch.Tensor, tmp_path: Path) -> None:
    activations = write(tmp_path / "set", rows)
    activations.verify()
    for name in ("shard-00002.safetensors", "texts.jsonl"):
        file = tmp_path / "set" / name
        before = file.read_bytes()
        file.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
        with pytest.raises(IntegrityError, match=name):
            ActivationSet.open(tmp_path / "set").verify()
        file.write_bytes(before)
    activations.verify()


def test_what_is_no_set_is_refused(rows: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no activation set"):
        ActivationSet.open(tmp_path / "nowhere")
    folder = tmp_path / "set"
    write(folder, rows)
    with pytest.raises(InputError, match="already; give another directory"):
        write(folder, rows)
    index = json.loads((folder / "index.json").read_text())
    broken: list[tuple[dict[str, object], str]] = [
        ({**index, "schema": "activation-set/9"}, "schema 'activation-set/9'"),
        ({**index, "n_rows": 7}, "do not add up to 7 rows"),
        ({key: value for key, value in index.items() if key != "shards"}, "damaged"),
        (
            {**index, "shards": [{**index["shards"][0], "file": "../set/shard-00000.safetensors", "rows": 3000}]},
            "lacks",
        ),
        ({**index, "texts": {"file": "gone.jsonl", "sha256": ""}}, "lacks its file 'gone.jsonl'"),
    ]
    for content, message in broken:
        (folder / "index.json").write_text(json.dumps(content))
        with pytest.raises(IntegrityError, match=message):
            ActivationSet.open(folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(IntegrityError, match="damaged"):
        ActivationSet.open(folder)
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "shard-00001.safetensors").write_bytes(b"not a shard")
    with pytest.raises(IntegrityError, match="shard-00001"):
        ActivationSet.open(folder).tensor()


def test_float16_refuses_what_it_cannot_hold(rows: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too large for 'float16'; use 'bfloat16'"):
        write(tmp_path / "set", rows * 100, dtype="float16")
    assert write(tmp_path / "other", rows * 100, dtype="bfloat16").tensor().isfinite().all()
    with pytest.raises(UnknownNameError, match="unknown dtype 'int8'; known: 'float32', 'float16', 'bfloat16'"):
        write(tmp_path / "third", rows, dtype="int8")


def test_a_directory_holds_a_set_for_each_layer(tiny_model: MakeModel, texts: list[str], tmp_path: Path) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [0, "bert.encoder.layer.1"])
    sets = split.get_activations(texts, directory=tmp_path / "deep" / "folder", dtype="float16")
    assert list(sets) == [0, "bert.encoder.layer.1"]
    again = ActivationSet.open(tmp_path / "deep" / "folder" / "bert.encoder.layer.1")
    assert torch.equal(again.tensor(), sets["bert.encoder.layer.1"].tensor())
    assert again.provenance == sets["bert.encoder.layer.1"].provenance
    assert (again.layer, again.granularity, again.dtype, again.width) == (
        "bert.encoder.layer.1", "token", "float16", 32,
    )  # fmt: skip
    with pytest.raises(InputError, match="already; give another directory"):
        split.get_activations(texts, directory=tmp_path / "deep" / "folder", dtype="float16", resume=False)
    again.verify()


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_interrupted_harvest_leaves_no_set(
    error: type[BaseException],
    tiny_model: MakeModel,
    texts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    split = ModelWithSplitPoints(tiny_model("bert"), [0, 1])

    def stream() -> Iterator[str]:
        yield from texts * 60
        raise error("enough")

    folder = tmp_path / "bert.encoder.layer.0"
    folder.mkdir()
    # A process that was killed leaves its shards, and other files may be there.
    (folder / "shard-00007.safetensors").write_bytes(b"old")
    (folder / "shard-00008.safetensors.partial").write_bytes(b"old")
    (folder / "notes.txt").write_text("mine")
    for directory in (tmp_path, None):
        with pytest.raises(error, match="enough"):
            split.get_activations(stream(), directory=directory, token_budget=16)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["notes.txt"]
    assert not list(temporary.iterdir())
    sets = split.get_activations(texts, directory=tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json", "notes.txt", "shard-00000.safetensors", "texts.jsonl",
    ]  # fmt: skip
    sets[0].verify()


def test_temporary_sets_go_with_their_objects(
    tiny_model: MakeModel, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ModelWithSplitPoints(tiny_model("bert"), [0, 1]).get_activations(texts)
    first, second = sets[0].path, sets.pop(1).path
    gc.collect()
    assert first.is_dir()
    assert not second.exists()
    # In a forked worker the objects go away, too, and the folder must not.
    with monkeypatch.context() as worker:
        worker.setattr("os.getpid", lambda: -1)
        copied = sets.pop(0)
        path, finished = copied.path, weakref.ref(copied)
        del copied
        gc.collect()
        assert finished() is None
        assert path.is_dir()
    shutil.rmtree(path)


def test_texts_are_streamed(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [0], engine="hooks")
    read = 0
    lead = 0
    done = 0
    capture = split.capture

    def stream() -> Iterator[str]:
        nonlocal read
        for i in range(3000):
            read += 1
            yield "the food was great" if i % 2 else "soup"

    def counted(inputs: dict[str, torch.Tensor], *rest: object) -> dict[str, torch.Tensor]:
        nonlocal lead, done
        lead = max(lead, read - done)
        done += len(inputs["input_ids"])
        return capture(inputs, *rest)

    monkeypatch.setattr(split, "capture", counted)
    (activations,) = split.get_activations(stream(), token_budget=32).values()
    assert len(activations) == 1500 * 5
    assert done == 3000
    # At most a chunk of the tokenizer and a window of 16 batches are in memory.
    assert lead <= 256 + 16 * 32


def test_provenance_says_what_was_seen(tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [1])
    (given,) = split.get_activations(texts).values()
    dataset = TextDataset("reviews", tuple(texts), tuple("abcde"), source="a file")
    (named,) = split.get_activations(dataset).values()
    harvest = given.provenance["harvest"]
    assert harvest["token_budget"] == 1024
    assert given.provenance == {
        "harvest": harvest,
        "model": {
            "name": "tiny",
            "uri": model.uri,
            "fingerprint": model.fingerprint,
            "model_id": None,
            "class": "BertForSequenceClassification",
            "dtype": "float32",
            **model.identity,
        },
        "aggregation": "mean",
        "autocast_error": None,
        "layer": "bert.encoder.layer.1",
        "granularity": "token",
        "width": 32,
        "data": {
            "name": "texts",
            "digest": TextDataset("any", tuple(texts)).digest,
            "source": "given as Python objects",
            "n_texts": 5,
            "rows_sha256": given.provenance["data"]["rows_sha256"],
        },
        "store_error": 0.0,
        "n_rows": len(given),
        "n_truncated": 0,
    }
    assert named.provenance["data"] == {
        "name": "reviews",
        "digest": dataset.digest,
        "source": "a file",
        "n_texts": 5,
        "rows_sha256": given.provenance["data"]["rows_sha256"],
    }
    assert torch.equal(named.tensor(), given.tensor())


def test_long_texts_are_cut_and_counted(tiny_model: MakeModel) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    with pytest.warns(UserWarning, match="text 1 is longer than 32 tokens"):
        (activations,) = split.get_activations(["soup", "food " * 50]).values()
    assert activations.provenance["n_truncated"] == 1
    assert np.bincount(activations.text_ids).tolist() == [1, 30]


@pytest.mark.parametrize("engine", ENGINES)
def test_nan_names_the_text(engine: str, tiny_model: MakeModel, texts: list[str], tmp_path: Path) -> None:
    model = tiny_model("bert")
    soup = model.tokenizer.convert_tokens_to_ids("soup")
    with torch.no_grad():
        model.embedding.weight[soup] = float("nan")
    split = ModelWithSplitPoints(model, [1], engine=engine)
    with pytest.raises(
        ModelOutputError, match=r"'bert\.encoder\.layer\.1' puts out NaN or infinity for text 1: 'awful so"
    ):
        split.get_activations(texts, directory=tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_refused_with_its_name(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("llama"), [1])
    with pytest.raises(DataError, match="none of the 2 texts has a token"):
        split.get_activations(["", "  "])
    with pytest.raises(DataError, match="none of the 0 texts"):
        split.get_activations([])
    with pytest.raises(UnknownNameError, match="unknown granularity 'letter'; known: 'token'"):
        split.get_activations(texts, granularity="letter")
    with pytest.raises(UnknownNameError, match="unknown dtype 'float8'"):
        split.get_activations(texts, dtype="float8")
    with pytest.raises(InputError, match="not one string"):
        split.get_activations("one text")
    with pytest.raises(InputError, match="text 1 is not a string but 3"):
        split.get_activations(["a", 3])  # type: ignore[list-item]
    with pytest.raises(InputError, match="budget must be at least 1, not 0"):
        split.get_activations(texts, token_budget=0)


def test_memory_that_runs_out_makes_smaller_batches(
    tiny_model: MakeModel, texts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1], engine="hooks")
    (expected,) = split.get_activations(texts).values()
    capture, limit = split.capture, 2

    def limited(inputs: dict[str, torch.Tensor], *rest: object) -> dict[str, torch.Tensor]:
        if len(inputs["input_ids"]) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return capture(inputs, *rest)

    monkeypatch.setattr(split, "capture", limited)
    (activations,) = split.get_activations(texts).values()
    torch.testing.assert_close(activations.tensor(), expected.tensor(), atol=1e-5, rtol=1e-5)
    limit = 0
    with pytest.raises(MemoryError, match="does not fit in memory"):
        split.get_activations(texts)


def test_the_model_and_the_tokenizer_stay_as_they_were(tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    model.model.train()
    model.tokenizer.padding_side = "left"
    model.tokenizer.backend_tokenizer.enable_truncation(7)
    weights = copy.deepcopy(model.model.state_dict())
    tokenizer = model.tokenizer.backend_tokenizer.to_str()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModelWithSplitPoints(model, [0, 1]).get_activations(texts)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.model.state_dict().items())
    assert all(module.training for module in model.model.modules())
    assert model.tokenizer.backend_tokenizer.to_str() == tokenizer
    assert model.tokenizer.padding_side == "left"


def test_progress_is_quiet_where_there_is_no_terminal(
    tiny_model: MakeModel, texts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [0])
    split.get_activations(texts)
    split.get_activations(texts, progress=False)
    assert capsys.readouterr() == ("", "")
    split.get_activations(["", *texts], progress=True, granularity="sample")
    assert "6/6" in capsys.readouterr().err
