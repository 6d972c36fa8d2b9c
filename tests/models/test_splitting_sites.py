"""Places of many architectures: against plain hooks, the sums they belong to, and with one engine as with the other."""

from __future__ import annotations

import base64
import importlib.util
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, FNetConfig, FNetForSequenceClassification

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.splitting import ENGINES, Splitter
from interpreto_mlops.models.text_model import TextModel
from tests.conftest import TEXTS, build, word_tokenizer
from tests.models.architectures import random_model

MakeModel = Callable[..., TextModel]

CASES = (
    *(("bert", head) for head in ("classifier", "token", "masked", "none")),
    *((name, "classifier") for name in ("roberta", "distilbert", "electra", "deberta", "mpnet", "modernbert")),
    *((name, "classifier") for name in ("longformer", "xlnet", "xlm-roberta")),
    *(("gpt2", head) for head in ("classifier", "token", "causal", "none")),
    *((name, "classifier") for name in ("llama", "qwen3", "opt", "bloom", "gemma2")),
    *((name, "causal") for name in ("gpt_neo", "gpt_neox", "mistral", "qwen2", "gemma", "gemma3", "phi", "falcon")),
    *((name, head) for name in ("t5", "bart") for head in ("classifier", "seq2seq", "none")),
    *((("cohere", "causal"), ("opt", "causal"), ("mbart", "classifier"), ("t5", "token"))),
)
cases = pytest.mark.parametrize(("architecture", "head"), CASES, ids=lambda value: str(value))
engines = pytest.mark.parametrize("engine", ENGINES)
ONE_SUM = (  # out = in + attention + mlp
    *("modernbert", "gpt2", "gpt_neo", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"),
    *("gemma3", "phi", "bloom", "falcon", "cohere", "t5", "mbart"),
)
NORMED_SUMS = {  # out = norm(norm(in + attention) + mlp)
    "bert": ("attention.output.LayerNorm", "output.LayerNorm"),
    "roberta": ("attention.output.LayerNorm", "output.LayerNorm"),
    "electra": ("attention.output.LayerNorm", "output.LayerNorm"),
    "deberta": ("attention.output.LayerNorm", "output.LayerNorm"),
    "longformer": ("attention.output.LayerNorm", "output.LayerNorm"),
    "distilbert": ("sa_layer_norm", "output_layer_norm"),
    "mpnet": ("attention.LayerNorm", "output.LayerNorm"),
    "bart": ("self_attn_layer_norm", "final_layer_norm"),
}


def made(architecture: str, head: str = "classifier") -> TextModel:
    return TextModel(random_model(architecture, head), word_tokenizer(), name=architecture)


def points_of(architecture: str, head: str) -> list[int | str]:
    points: list[int | str] = [0, -1]
    points += [] if architecture == "xlnet" else ["0.attention", "1.mlp"]
    return points if head in {"none", "seq2seq"} else [*points, "head"]


def batch_of(model: TextModel, head: str) -> dict[str, torch.Tensor]:
    batch = model.inputs(list(model.encode(TEXTS)))
    reads_twice = model.model.config.is_encoder_decoder and head in {"none", "seq2seq"}
    return {**batch, "decoder_input_ids": batch["input_ids"]} if reads_twice else batch


def captured(split: Splitter, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return split.capture({name: value for name, value in batch.items() if name != "decoder_input_ids"})


def plain_run(
    model: TextModel, name: str, batch: dict[str, torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference: what is at a place, and the model's output when it is changed; one hook, the whole forward."""
    module = model.model.get_submodule(name.removesuffix(".input"))
    found: list[torch.Tensor] = []

    def act(value: Any) -> Any:
        tensor = value[0] if isinstance(value, tuple) else value
        found.append(tensor.clone())
        return (change(tensor), *value[1:]) if isinstance(value, tuple) else change(tensor)

    if name.endswith(".input"):
        handle = module.register_forward_pre_hook(lambda _module, args: act(args))
    else:
        handle = module.register_forward_hook(lambda _module, _args, output: act(output))
    with torch.no_grad():
        output = model.model(**batch)[0]
    handle.remove()
    return found[0], output


@cases
def test_both_engines_equal_plain_hooks(architecture: str, head: str) -> None:
    model, points = made(architecture, head), points_of(architecture, head)
    batch = batch_of(model, head)
    traced, hooked = (Splitter(model, points, engine=engine) for engine in ENGINES)
    assert traced.split_points == hooked.split_points
    assert traced.per_text == hooked.per_text
    assert len(hooked.split_points) == len(points)
    rows, tokens = batch["input_ids"].shape
    left = {name: torch.stack([r.roll(tokens - int(m.sum())) for r, m in zip(value, batch["attention_mask"])])  # noqa: B905
            for name, value in batch.items()}  # fmt: skip
    for split in (traced, hooked):
        found, from_left = captured(split, batch), captured(split, left)
        assert list(found) == list(split.split_points)
        for name, tensor in found.items():
            expected = plain_run(model, name, batch, lambda each: each)[0]
            if name in split.per_text:
                torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)
                torch.testing.assert_close(from_left[name], tensor, atol=1e-5, rtol=1e-5)
                continue
            assert tensor.shape == (rows, tokens, split.widths[name])
            if architecture == "xlnet" and name != "logits_proj.input":
                expected = expected.transpose(0, 1)
            expected = expected.reshape(rows, -1, split.widths[name])[:, :tokens]
            right = batch["attention_mask"].bool()
            torch.testing.assert_close(tensor[right], expected[right], atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(
                from_left[name][left["attention_mask"].bool()], tensor[right], atol=1e-5, rtol=1e-5
            )


@cases
def test_both_engines_replace_as_plain_hooks_do(architecture: str, head: str) -> None:
    model, points = made(architecture, head), points_of(architecture, head)
    batch = batch_of(model, head)

    def change(tensor: torch.Tensor) -> torch.Tensor:
        return tensor * 0.5 + torch.linspace(-1, 1, tensor.shape[-1])

    splits = [Splitter(model, points, engine=engine) for engine in ENGINES]
    with torch.no_grad():
        before = model.model(**batch)[0]
        for point in points:
            name = splits[0].path(point)
            expected = plain_run(model, name, batch, change)[1]
            assert not torch.allclose(expected, before, atol=1e-3)
            for split in splits:
                torch.testing.assert_close(split.outputs(batch, {point: change})[0], expected, atol=1e-5, rtol=1e-5)
            shapes = []
            with splits[0].replaced(point, lambda each, shapes=shapes: shapes.append(each.shape[:-1]) or change(each)):  # type: ignore[misc]
                torch.testing.assert_close(model.model(**batch)[0], expected, atol=1e-5, rtol=1e-5)
            if architecture != "longformer":
                shape = tuple(batch["input_ids"].shape)
                assert shapes == [shape[:1] if name in splits[0].per_text else shape]
        several = dict.fromkeys(points, change)
        first, second = (split.outputs(batch, several)[0] for split in splits)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())


@pytest.mark.parametrize("architecture", ONE_SUM)
def test_a_block_adds_up(architecture: str) -> None:
    model = made(architecture, "causal" if architecture == "cohere" else "classifier")
    split = Splitter(model, [0, 1, "1.attention", "1.mlp"])
    found = captured(split, batch_of(model, "classifier"))
    before, after, attention, mlp = (found[split.path(point)] for point in (0, 1, "1.attention", "1.mlp"))
    torch.testing.assert_close(before + attention + mlp, after, atol=1e-5, rtol=1e-5)
    assert min(attention.abs().max(), mlp.abs().max()) > 1e-3


@pytest.mark.parametrize("architecture", NORMED_SUMS)
def test_a_block_that_norms_its_sums_adds_up(architecture: str) -> None:
    model = made(architecture)
    split = Splitter(model, [0, 1, "1.attention", "1.mlp"])
    found = captured(split, batch_of(model, "classifier"))
    before, after, attention, mlp = (found[split.path(point)] for point in (0, 1, "1.attention", "1.mlp"))
    block = model.model.get_submodule(split.path(1))
    first, second = (block.get_submodule(name) for name in NORMED_SUMS[architecture])
    with torch.no_grad():
        torch.testing.assert_close(second(first(before + attention) + mlp), after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "head"), [case for case in CASES if case[1] not in {"none", "seq2seq"} and case[0] != "cohere"]
)
def test_the_head_makes_the_logits_of_what_it_reads(architecture: str, head: str) -> None:
    model = made(architecture, head)
    batch = batch_of(model, head)
    split = Splitter(model, ["head"])
    (name,) = split.split_points
    by_token = {"gpt2", "llama", "qwen3", "opt", "bloom", "gemma2"}
    assert (name in split.per_text) == (head == "classifier" and architecture not in by_token)
    with torch.no_grad():
        logits = model.model.get_submodule(name.removesuffix(".input"))(captured(split, batch)[name])
        expected = model.model(**batch).logits
    if head == "classifier" and name not in split.per_text:
        logits = logits[torch.arange(len(TEXTS)), batch["attention_mask"].sum(1) - 1]
    elif name not in split.per_text:
        mask = batch["attention_mask"].bool()
        logits, expected = logits[mask], expected[mask]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


@engines
def test_a_head_is_not_run_for_what_it_reads(engine: str, tiny_model: MakeModel) -> None:
    model = tiny_model("gpt2")
    model.model.config.pad_token_id = None  # its pooling would refuse several rows
    split = Splitter(model, ["head", "1.attention"], engine=engine)
    calls: list[str] = []
    for name in ("transformer.h.1.attn", "transformer.h.2", "transformer.ln_f", "score"):
        original = model.model.get_submodule(name)
        original.forward = _counted(name, original.forward, calls)  # type: ignore[method-assign]
    captured(split, batch_of(model, "classifier"))
    assert calls == ["transformer.h.1.attn", "transformer.h.2", "transformer.ln_f"]
    split = Splitter(model, ["0.mlp", "transformer.h.1.attn.input"], engine=engine)
    calls.clear()
    captured(split, batch_of(model, "classifier"))
    assert calls == []


def _counted(name: str, forward: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return forward(*args, **kwargs)

    return count


def test_the_decoder_of_a_classifier_reads_the_text() -> None:
    model = made("bart")
    batch = batch_of(model, "classifier")
    for engine in ENGINES:
        split = Splitter(model, ["model.decoder.layers.0", 1], engine=engine)
        assert split.split_points == ("model.encoder.layers.1", "model.decoder.layers.0")
        found = captured(split, batch)
        for name, tensor in found.items():
            torch.testing.assert_close(tensor, plain_run(model, name, batch, lambda each: each)[0])
    with pytest.raises(
        InputError, match=r"'model\.decoder\.layers\.0' is not in the encoder, and an encoder-decoder that"
    ):
        Splitter(made("bart", "seq2seq"), ["model.decoder.layers.0"])
    with pytest.raises(InputError, match="would read the text that its decoder writes"):
        Splitter(made("t5", "seq2seq"), ["head"])


@pytest.mark.parametrize(
    ("architecture", "head", "point", "message"),
    [
        ("bert", "none", "head", "has no head: it puts out no logits"),
        ("bert", "classifier", "1.attn", "unknown part of a block 'attn'; known: 'attention', 'mlp'"),
        ("bert", "classifier", "3.mlp", r"unknown layer 3: the model has layers 0\.\.2"),
        ("bert", "classifier", "heads", r"unknown layer 'heads'; known: 'head', 'bert\.encoder\.layer\.0'.*'2\.mlp'"),
        ("bert", "classifier", "bert.embeddings.word_embeddings.input", "no activations but numbers of dtype"),
        ("bert", "classifier", "bert.nowhere.input", r"unknown layer 'bert\.nowhere\.input'"),
        ("gpt2", "classifier", "transformer.h.0.attn.attn_dropout", "takes no part in the model's forward pass"),
        ("llama", "causal", "model.rotary_emb", r"does not put out one vector for each token.*shape is \(1, 3, 8\)"),
        ("albert", "classifier", 0, "runs 3 times in one forward pass"),
        ("granite", "causal", "1.mlp", "is not the sum of what it reads"),
        ("xlnet", "classifier", "1.attention", "is not the sum of what it reads"),
    ],
)  # fmt: skip
def test_wrong_places_are_refused(architecture: str, head: str, point: int | str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Splitter(made(architecture, head), [point])


def test_a_model_without_attention_has_no_attention() -> None:
    config = FNetConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, intermediate_size=48, type_vocab_size=2)
    model = TextModel(FNetForSequenceClassification(config).eval(), word_tokenizer(), name="fnet")
    assert Splitter(model, [1]).split_points == ("fnet.encoder.layer.1",)
    with pytest.raises(InputError, match=r"'fnet\.encoder\.layer\.1' is not the sum"):
        Splitter(model, ["1.attention"])


def test_a_name_given_twice_is_refused(tiny_model: MakeModel) -> None:
    with pytest.raises(InputError, match=r"'classifier\.input' is the layer 'classifier\.input', which is in the list"):
        Splitter(tiny_model("bert"), ["head", "classifier.input"])
    split = Splitter(tiny_model("gpt2"), ["-1.mlp"])
    assert split.path("-1.mlp") == "transformer.h.2.mlp"
    with pytest.raises(UnknownNameError, match=r"unknown split point '2\.mlp'; known: '-1\.mlp'"):
        split.path("2.mlp")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["gpt2", "gpt_neox", "llama", "t5", "mbart"])
def test_sums_are_found_in_a_stream_of_large_numbers(dtype: torch.dtype, architecture: str) -> None:
    """Trained decoders carry a few numbers of thousands, beside which rounding hides much."""
    network = random_model(architecture)
    with torch.no_grad():
        network.get_input_embeddings().weight[:, 5] = 3000.0
    model = TextModel(network.to(dtype), word_tokenizer(), name="large")
    points: list[int | str] = ["0.attention", "1.attention", "0.mlp", "1.mlp"]
    small = Splitter(made(architecture), points)
    assert Splitter(model, points).points == small.points


@engines
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_half_precision_comes_back_as_it_is(engine: str, dtype: torch.dtype, architecture: str) -> None:
    exact = Splitter(made(architecture), [0, "1.attention", "1.mlp", "head"])
    model = TextModel(random_model(architecture).to(dtype), word_tokenizer(), name="half")
    split = Splitter(model, [0, "1.attention", "1.mlp", "head"], engine=engine)
    batch = batch_of(model, "classifier")
    found, expected = captured(split, batch), captured(exact, batch)
    assert list(found) == list(expected)
    for name, tensor in found.items():
        assert tensor.dtype == dtype
        valid = batch["attention_mask"].bool() if tensor.dim() == 3 else slice(None)
        error = (tensor.float() - expected[name])[valid].norm() / expected[name][valid].norm()
        assert error < 0.05


@engines
def test_autocast_is_for_captures_too(engine: str) -> None:
    model = TextModel(random_model("bert"), word_tokenizer(), name="cast", autocast="bfloat16")
    found = captured(Splitter(model, ["0.mlp"], engine=engine), batch_of(model, "classifier"))
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}


def test_threads_share_a_model_in_train_mode(tiny_model: MakeModel) -> None:
    """Dropout must not come back while another thread is still in the model; traces must not see its passes."""
    model = tiny_model("bert")
    model.model.train()
    batches = [model.inputs([encoding]) for encoding in model.encode(TEXTS)]
    splits = {engine: Splitter(model, [0, 2], engine=engine) for engine in ENGINES}
    expected = [splits["hooks"].capture(batch) for batch in batches]
    wrong: list[object] = []

    def work(engine: str) -> None:
        try:
            for _ in range(15):
                for batch, reference in zip(batches, expected, strict=True):
                    found = splits[engine].capture(batch)
                    wrong.extend(name for name in reference if not torch.equal(found[name], reference[name]))
        except BaseException as error:  # noqa: BLE001 - a thread's errors are lost otherwise
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(engine,)) for engine in ("nnsight", "hooks", "hooks", "nnsight")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(module.training for module in model.model.modules())


def test_a_trace_does_not_see_the_passes_of_other_threads(tiny_model: MakeModel) -> None:
    model = tiny_model("gpt2")
    batch = batch_of(model, "classifier")
    hooks = Splitter(model, [0, 1], engine="hooks")
    expected, seen = hooks.capture(batch), list[dict[str, torch.Tensor]]()

    def change(tensor: torch.Tensor) -> torch.Tensor:
        other = threading.Thread(target=lambda: seen.append(hooks.capture(batch)))
        other.start()
        other.join()
        return tensor * 2

    with torch.no_grad():
        traced = Splitter(model, [0, 1], engine="nnsight").outputs(batch, {0: change, 1: change}).logits
        plain = hooks.outputs(batch, {0: change, 1: change}).logits
    torch.testing.assert_close(traced, plain)
    assert len(seen) == 4
    assert all(torch.equal(found[name], expected[name]) for found in seen for name in expected)


class _Offload:
    """Weights of one module kept elsewhere, brought in for its forward: what accelerate puts on a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.execution_device = torch.device("cpu")
        self.weights_map = {name: each.detach().clone() for name, each in module.named_parameters(recurse=False)}
        self.away(module)

    def away(self, module: torch.nn.Module) -> None:
        for name, kept in self.weights_map.items():
            module._parameters[name] = torch.nn.Parameter(kept.to("meta"), requires_grad=False)

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        for name, kept in self.weights_map.items():
            module._parameters[name] = torch.nn.Parameter(kept, requires_grad=False)
        return args, kwargs

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        self.away(module)
        return output


def _offloaded(network: torch.nn.Module) -> None:
    for module in network.modules():
        if next(module.parameters(recurse=False), None) is None:
            continue
        module._hf_hook = hook = _Offload(module)  # type: ignore[assignment]
        module._old_forward = old = module.forward  # type: ignore[assignment]

        def forward(*args: Any, _m: Any = module, _hook: Any = hook, _old: Any = old, **kwargs: Any) -> Any:
            args, kwargs = _hook.pre_forward(_m, *args, **kwargs)
            return _hook.post_forward(_m, _old(*args, **kwargs))

        module.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("how", ["by hand", "accelerate"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_offloaded_models_are_captured_and_left_offloaded(how: str, architecture: str) -> None:
    if how == "accelerate" and importlib.util.find_spec("accelerate") is None:
        pytest.skip("accelerate is not installed; the test by hand stands for it")
    points: list[int | str] = [0, -1, "1.attention", "2.mlp", "head"]
    here = TextModel(build(architecture), word_tokenizer(), name="here")
    batch = batch_of(here, "classifier")
    expected = captured(Splitter(here, points), batch)
    network = build(architecture)
    if how == "accelerate":
        accelerate: Any = importlib.import_module("accelerate")
        accelerate.cpu_offload(network, execution_device=torch.device("cpu"))
    else:
        _offloaded(network)
    model = TextModel(network, word_tokenizer(), name="away")
    assert next(network.parameters()).device.type == "meta"
    assert model.fingerprint == here.fingerprint
    forwards = [module.__dict__.get("forward") for module in network.modules()]
    for engine in ENGINES:
        found = captured(Splitter(model, points, engine=engine), batch)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert all(parameter.device.type == "meta" for parameter in network.parameters())
    assert [module.__dict__.get("forward") for module in network.modules()] == forwards


@engines
def test_published_tensors_of_a_trained_model(engine: str, shared: Path) -> None:
    folder = shared / "models" / "gpt_nano_sort"
    published = json.loads((folder / "source" / "gpt-nano-sort-t0-partials.json").read_text())

    def tensor(name: str) -> torch.Tensor:
        values = np.frombuffer(base64.b64decode(published[name]["data"]), dtype=np.float32)
        return torch.from_numpy(values.copy()).reshape(published[name]["shape"])

    network = AutoModelForCausalLM.from_pretrained(folder / "hf")
    model = TextModel(network, AutoTokenizer.from_pretrained(folder / "hf"), name="sort")
    places: dict[int | str, str] = {0: "block0", 1: "block1", 2: "block2", "head": "ln_f", "transformer.ln_f": "ln_f"}
    places |= {"0.attention": "yProj", "0.mlp": "mlp", "transformer.h.0.ln_1": "ln1", "transformer.h.0.input": "x"}
    places |= {"transformer.h.0.ln_2": "ln2", "transformer.h.0.ln_2.input": "attnResid"}
    places |= {"transformer.h.0.mlp.c_fc": "fc", "transformer.h.0.mlp.c_proj.input": "gelu"}
    split = Splitter(model, list(places), engine=engine)
    ids = tensor("idx").long()
    found = split.capture({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    for point, name in places.items():
        torch.testing.assert_close(found[split.path(point)], tensor(name), atol=2e-6, rtol=0)
