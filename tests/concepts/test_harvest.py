"""Harvests that are broken off go on to the same bytes; rows are what their names say; damage is named."""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from interpreto_mlops.concepts import ActivationSet, ModelWithSplitPoints, activations
from interpreto_mlops.concepts.row_plans import AGGREGATIONS, aggregate, plan_rows
from interpreto_mlops.errors import InputError, IntegrityError, ModelOutputError, UnknownNameError
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import WORDS, word_tokenizer

MakeModel = Callable[..., TextModel]


def many(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 12))) for _ in range(count)]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def slowly(column: torch.Tensor, aggregation: str) -> float:
    values = column.tolist()
    return {
        "mean": lambda: sum(values) / len(values),
        "max": lambda: max(values),
        "min": lambda: min(values),
        "sum": lambda: sum(values),
        "signed_max": lambda: max(values, key=lambda v: (abs(v), v)),
        "first": lambda: values[0],
        "last": lambda: values[-1],
    }[aggregation]()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("granularity", ["token", "word", "sentence", "sample", "cls", "all_tokens"])
def test_rows_against_a_slow_reference(
    granularity: str, aggregation: str, cebab_model: TextModel, cebab_reviews: object
) -> None:
    texts = ["Unbelievably tasty! We'd come back.", "", "The waiter snubbed us. Overpriced, lukewarm soup.", "ok"]
    split = ModelWithSplitPoints(cebab_model, [0])
    found = split.get_activations(texts, granularity=granularity, aggregation=aggregation, token_budget=16)[0]
    expected, text_ids = [], []
    for encoding in cebab_model.encode(texts):
        output = split.capture(cebab_model.inputs([encoding]))[split.split_points[0]][0]
        plan = plan_rows(encoding, granularity)
        for row in range(len(plan)):
            tokens = output[torch.from_numpy(plan.of_token == row)]
            expected.append([slowly(column, aggregation) for column in tokens.T])
            text_ids.append(encoding.index)
    torch.testing.assert_close(found.tensor(), torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert found.text_ids.tolist() == text_ids
    assert found.provenance["aggregation"] == aggregation


def test_signed_max_takes_the_positive_of_equals() -> None:
    tokens = torch.tensor([[-2.0, 1.0], [2.0, -3.0], [0.5, 3.0]])
    assert aggregate(tokens, torch.tensor([3]), "signed_max").tolist() == [[2.0, 3.0]]


def test_unknown_words_are_kept(tiny_model: MakeModel) -> None:
    found = ModelWithSplitPoints(tiny_model("bert"), [0]).get_activations(["the zebra was fine"])[0]
    assert len(found) == 4
    assert found.texts[0][slice(*found.spans[1])] == "zebra"


def test_unknown_words_are_kept_where_their_id_is_that_of_padding(tiny_model: MakeModel) -> None:
    model = tiny_model("llama")
    model.tokenizer.pad_token = model.tokenizer.unk_token
    found = ModelWithSplitPoints(model, [0]).get_activations(["the zebra was [UNK] fine", "zebra"])[0]
    words = [found.texts[i][slice(*span)] for i, span in zip(found.text_ids, found.spans.tolist(), strict=True)]
    # What the text itself calls by the name of padding is padding.
    assert words == ["the", "zebra", "was", "fine", "zebra"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_side_of_padding_does_not_matter(side: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("llama")
    alone = ModelWithSplitPoints(model, [1]).get_activations(texts, token_budget=1)[1].tensor()
    model.tokenizer.padding_side = side
    together = ModelWithSplitPoints(model, [1]).get_activations(texts)[1].tensor()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("engine", ["hooks", "nnsight"])
def test_what_is_kept_is_what_was_there(engine: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, [0, 2, "head"], engine=engine)
    inputs = model.inputs(list(model.encode(texts)))
    whole = split.capture(inputs)
    kept = split.capture(inputs, lambda name, there: there[1] + (name == "classifier.input"))
    assert list(kept) == list(whole)
    for name, tensor in whole.items():
        assert torch.equal(kept[name], tensor[1] + (name == "classifier.input"))


def test_nan_is_found_where_the_aggregation_would_hide_it(tiny_model: MakeModel) -> None:
    model = tiny_model("bert")
    with torch.no_grad():
        model.embedding.weight[model.tokenizer.convert_tokens_to_ids("soup")] = float("nan")
    split = ModelWithSplitPoints(model, ["bert.embeddings"])
    assert len(split.get_activations(["the food"], granularity="sample", aggregation="first")["bert.embeddings"]) == 1
    for options in ({"granularity": "sample", "aggregation": "first"}, {}):
        with pytest.raises(ModelOutputError, match="NaN or infinity for text 1: 'the soup'"):
            split.get_activations(["the food", "the soup"], **options)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_a_dtype_loses_is_measured(dtype: str, tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [1])
    own = split.get_activations(texts)[1]
    found = split.get_activations(texts, dtype=dtype)[1]
    rows = own.tensor().double()
    stored = rows.to(getattr(torch, dtype)).double()
    assert torch.equal(found.tensor().double(), stored)
    centred = stored - stored.mean(dim=0)
    assert found.store_error == pytest.approx(float((stored - rows).norm() / centred.norm()), rel=1e-5)
    assert found.store_error == found.provenance["store_error"] > 0
    assert own.store_error == 0


def test_places_with_a_vector_a_text(tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    split = ModelWithSplitPoints(model, ["head"])
    found = split.get_activations([*texts, ""], granularity="sample")["head"]
    assert len(found) == len(texts)
    heads: list[torch.Tensor] = []
    handle = model.model.classifier.register_forward_pre_hook(lambda _m, args: heads.append(args[0][0]))
    with torch.no_grad():
        for encoding in model.encode(texts):
            model.model(**model.inputs([encoding]))
    handle.remove()
    torch.testing.assert_close(found.tensor(), torch.stack(heads), rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="has one vector for each text, so rows are texts: granularity 'sample'"):
        split.get_activations(texts)


def test_norms_are_gathered(tiny_model: MakeModel, texts: list[str]) -> None:
    found = ModelWithSplitPoints(tiny_model("bert"), [0]).get_activations(texts)[0]
    norms = found.tensor().double().norm(dim=1)
    assert found.mean_norm == pytest.approx(float(norms.mean()), rel=1e-9)
    assert found.rms_norm == pytest.approx(float(norms.square().mean().sqrt()), rel=1e-9)


def test_half_precision_is_measured(texts: list[str], tiny_model: MakeModel) -> None:
    plain = tiny_model("bert")
    half = TextModel(plain.model, plain.tokenizer, name="half", autocast="bfloat16")
    exact = ModelWithSplitPoints(plain, [1]).get_activations(texts)[1]
    found = ModelWithSplitPoints(half, [1]).get_activations(texts)[1]
    error = found.provenance["autocast_error"]
    assert 0 < error < 0.05
    own = exact.tensor()
    assert float((found.tensor() - own).norm() / (own - own.mean(0)).norm()) == pytest.approx(error, rel=0.2)
    assert exact.provenance["autocast_error"] is None


SCRIPT = """
import sys, time
import torch
from interpreto_mlops.concepts import ModelWithSplitPoints, activations
from tests.concepts.test_harvest import many, model
activations.SHARD_BYTES = 64 * 32 * 4
split = ModelWithSplitPoints(model(), [0, 2])
plain = split.capture
def slow(inputs, *rest):
    time.sleep(0.05)
    return plain(inputs, *rest)
split.capture = slow
split.get_activations(many(400), directory=sys.argv[1], token_budget=64, progress=False)
"""


def model() -> TextModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, num_labels=3
    )
    return TextModel(BertForSequenceClassification(config).eval(), word_tokenizer(), name="tiny")


def test_a_killed_harvest_goes_on_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is killed when some shards are there; what goes on must not run the model on what was done."""
    monkeypatch.setattr(activations, "SHARD_BYTES", 64 * 32 * 4)
    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    split = ModelWithSplitPoints(model(), [0, 2])
    split.get_activations(many(400), directory=undisturbed, token_budget=64, progress=False)
    root = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SCRIPT), str(broken)], env=environ, cwd=root)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (broken / "harvest.json").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = json.loads((broken / "harvest.json").read_text())["n_texts"]
    assert 0 < done < 400
    with pytest.raises(InputError, match="there is no activation set"):
        ActivationSet.open(broken / "bert.encoder.layer.0")
    seen = []
    plain = split.capture
    monkeypatch.setattr(
        split, "capture", lambda inputs, *rest: seen.append(len(inputs["input_ids"])) or plain(inputs, *rest)
    )
    again = split.get_activations(many(400), directory=broken, token_budget=64, progress=False)
    assert sum(seen) == 400 - done
    assert contents(broken) == contents(undisturbed)
    again[0].verify()
    # What is finished is opened, and the model does not run.
    seen.clear()
    opened = split.get_activations(many(400), directory=broken, token_budget=64)
    assert seen == []
    assert torch.equal(opened[2].tensor(), again[2].tensor())


def broken_off(
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    texts: list[str],
    layers: tuple[int, ...] = (0,),
    **options: object,
) -> None:
    """A harvest that the user stops when a shard is there."""
    monkeypatch.setattr(activations, "SHARD_BYTES", 64 * 32 * 4)
    split = ModelWithSplitPoints(model(), layers)
    plain = split.capture

    def until_there_is_something(inputs: dict[str, torch.Tensor], *rest: object) -> dict[str, torch.Tensor]:
        if (directory / "harvest.json").is_file():
            raise KeyboardInterrupt
        return plain(inputs, *rest)

    monkeypatch.setattr(split, "capture", until_there_is_something)
    with pytest.raises(KeyboardInterrupt):
        split.get_activations(texts, directory=directory, token_budget=64, **options)  # type: ignore[arg-type]


def test_another_harvest_does_not_go_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = many(200)
    broken_off(tmp_path, monkeypatch, texts)
    split = ModelWithSplitPoints(model(), [0])
    before = contents(tmp_path)
    for options, what in (
        ({"granularity": "word"}, r"of another granularity \('token', not 'word'\)"),
        ({"aggregation": "max"}, "of another aggregation"),
        ({"dtype": "float16"}, "of another dtype"),
    ):
        with pytest.raises(InputError, match=what):
            split.get_activations(texts, directory=tmp_path, **{"token_budget": 64, **options})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="of other texts; give another directory"):
        split.get_activations(["something else", *texts], directory=tmp_path, token_budget=64)
    with pytest.raises(InputError, match="or resume=True"):
        split.get_activations(texts, directory=tmp_path, token_budget=64, resume=False)
    other = ModelWithSplitPoints(model(), [1])
    with pytest.raises(InputError, match="of another layers"):
        other.get_activations(texts, directory=tmp_path, token_budget=64)
    assert contents(tmp_path) == before
    (found,) = split.get_activations(iter(texts), directory=tmp_path, token_budget=64).values()
    assert torch.equal(found.tensor(), split.get_activations(texts, token_budget=64)[0].tensor())


def test_damage_to_what_was_done_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(tmp_path, monkeypatch, many(200))
    split = ModelWithSplitPoints(model(), [0])
    shard = next(tmp_path.rglob("shard-00000.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(IntegrityError, match=r"the file 'shard-00000.safetensors' .* has \d+ bytes, not \d+"):
        split.get_activations(many(200), directory=tmp_path, token_budget=64)


def test_damage_to_one_layer_takes_nothing_from_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken_off(tmp_path, monkeypatch, many(200), layers=(0, 1))
    split = ModelWithSplitPoints(model(), [0, 1])
    for name in ("shard-00000.safetensors", "pending-1.safetensors"):
        file = tmp_path / "bert.encoder.layer.1" / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        before = contents(tmp_path)
        with pytest.raises(IntegrityError, match=f"the file '{name}' .* was changed"):
            split.get_activations(many(200), directory=tmp_path, token_budget=64)
        assert contents(tmp_path) == before
        file.write_bytes(whole)
    found = split.get_activations(many(200), directory=tmp_path, token_budget=64)
    assert torch.equal(found[1].tensor(), split.get_activations(many(200), token_budget=64)[1].tensor())


def test_after_an_error_of_the_machine_a_harvest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "SHARD_BYTES", 64 * 32 * 4)
    split, texts = ModelWithSplitPoints(model(), [0]), many(700)

    def stream() -> Iterator[str]:
        yield from texts[:650]
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="the network is gone"):
        split.get_activations(stream(), directory=tmp_path, token_budget=64)
    assert (tmp_path / "harvest.json").is_file()
    found = split.get_activations(texts, directory=tmp_path, token_budget=64)[0]
    assert torch.equal(found.tensor(), split.get_activations(texts, token_budget=64)[0].tensor())


def test_damage_to_a_set_is_named(tmp_path: Path, tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [0])
    split.get_activations(texts, directory=tmp_path)
    folder = tmp_path / "bert.encoder.layer.0"
    shard = folder / "shard-00000.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    ActivationSet.open(folder)
    with pytest.raises(IntegrityError, match=r"'shard-00000.safetensors' .* was changed"):
        ActivationSet.open(folder, verify=True)
    shard.write_bytes(whole[:-1])
    with pytest.raises(IntegrityError, match=r"the file 'shard-00000.safetensors' .* has \d+ bytes"):
        ActivationSet.open(folder)


def test_what_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when shards were written already: it would fail again at the same text."""
    monkeypatch.setattr(activations, "SHARD_BYTES", 64 * 32 * 4)
    bad = model()
    with torch.no_grad():
        bad.model.bert.embeddings.word_embeddings.weight[bad.tokenizer.convert_tokens_to_ids("soup")] = float("nan")
    texts = [text.replace("soup", "fine") for text in many(200)] + ["awful soup"]
    with pytest.raises(ModelOutputError, match="NaN or infinity for text 200: 'awful soup'"):
        ModelWithSplitPoints(bad, [0]).get_activations(texts, directory=tmp_path, token_budget=64)
    assert contents(tmp_path) == {}


def test_names_are_refused(tiny_model: MakeModel, texts: list[str]) -> None:
    split = ModelWithSplitPoints(tiny_model("bert"), [0])
    with pytest.raises(UnknownNameError, match="unknown aggregation 'median'; known: 'mean', 'max'"):
        split.get_activations(texts, aggregation="median")
    with pytest.raises(UnknownNameError, match="unknown dtype 'int8'"):
        split.get_activations(texts, dtype="int8")


def test_provenance_tells_models_and_tokenizers_apart(tiny_model: MakeModel, texts: list[str]) -> None:
    said = ModelWithSplitPoints(tiny_model("bert"), [0]).get_activations(texts)[0].provenance
    other = ModelWithSplitPoints(tiny_model("bert", seed=1), [0]).get_activations(texts)[0].provenance
    assert said["model"]["class"] == "BertForSequenceClassification"
    assert said["model"]["config_sha256"] == other["model"]["config_sha256"]
    assert said["model"]["tokenizer_sha256"] == other["model"]["tokenizer_sha256"]
    assert said["model"]["fingerprint"] != other["model"]["fingerprint"]
    assert said["harvest"]["torch"] == importlib.metadata.version("torch")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_texts(tmp_path: Path) -> None:
    """Peak memory of four times as many texts is the same, but for the window."""
    script = """
        import resource, sys
        from interpreto_mlops.concepts import ModelWithSplitPoints
        from tests.concepts.test_harvest import many, model
        count = int(sys.argv[1])
        texts = (text for start in range(0, count, 500) for text in many(500, start))
        ModelWithSplitPoints(model(), [0]).get_activations(texts, directory=sys.argv[2], progress=False)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    root = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    peaks = []
    for count in (10_000, 40_000):
        command = [sys.executable, "-c", textwrap.dedent(script), str(count), str(tmp_path / str(count))]
        done = subprocess.run(command, env=environ, cwd=root, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] < peaks[0] + 60_000  # kilobytes
