from __future__ import annotations

import copy
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
import torch
from transformers import BartConfig, BartForSequenceClassification, T5Config, T5ForSequenceClassification

from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.packing import pack
from interpreto_mlops.models.splitting import ENGINES, Splitter, block_paths
from interpreto_mlops.models.text_model import TextModel

MakeModel = Callable[..., TextModel]

BLOCKS = {
    "bert": "bert.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "roberta": "roberta.encoder.layer",
    "gpt2": "transformer.h",
    "llama": "model.layers",
}
architectures = pytest.mark.parametrize("architecture", BLOCKS)
engines = pytest.mark.parametrize("engine", ENGINES)


def plain_outputs(model: TextModel, paths: list[str], **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
    """The reference: forward hooks, and the whole forward pass."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for path in paths:

        def keep(_module: object, _args: object, output: object, path: str = path) -> None:
            found[path] = output[0] if isinstance(output, tuple) else output  # type: ignore[assignment]

        handles.append(model.model.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad():
        model.model(**inputs)
    for handle in handles:
        handle.remove()
    return found


def left_padded(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    lengths = inputs["attention_mask"].sum(1)
    width = inputs["attention_mask"].shape[1]
    return {
        name: torch.stack([row.roll(int(width - n)) for row, n in zip(tensor, lengths, strict=True)])
        for name, tensor in inputs.items()
    }


def state_of(model: TextModel) -> dict[str, object]:
    """What a user could notice on a model, apart from its outputs."""
    state: dict[str, object] = {}
    for name, module in model.model.named_modules():
        state[name] = (
            sorted(module.__dict__),
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            module.__dict__.get("forward"),
        )
    for name, parameter in model.model.named_parameters():
        state[f"parameter {name}"] = (parameter.requires_grad, parameter.grad, parameter.detach().clone().sum().item())
    state["tokenizer"] = (
        model.tokenizer.padding_side,
        len(model.tokenizer),
        model.tokenizer.backend_tokenizer.to_str(),
    )
    return state


@architectures
@engines
def test_capture_equals_a_plain_hook(architecture: str, engine: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model(architecture)
    splitter = Splitter(model, [0, 2], engine=engine)
    paths = [f"{BLOCKS[architecture]}.{i}" for i in (0, 2)]
    assert list(splitter.split_points) == paths

    encodings = list(model.encode(texts))
    right = model.inputs(encodings)
    left = left_padded(right)
    alone = [plain_outputs(model, paths, **model.inputs([encoding])) for encoding in encodings]
    reference = plain_outputs(model, paths, **right)
    for inputs in (right, left):
        captured = splitter.capture(inputs)
        mask = inputs["attention_mask"].bool()
        for path in paths:
            torch.testing.assert_close(
                captured[path][mask], reference[path][right["attention_mask"].bool()], atol=1e-6, rtol=1e-6
            )
            for row, each in enumerate(alone):
                torch.testing.assert_close(captured[path][row][mask[row]], each[path][0], atol=1e-5, rtol=1e-5)
    for encoding, each in zip(encodings, alone, strict=True):
        captured = splitter.capture(model.inputs([encoding]))
        for path in paths:
            torch.testing.assert_close(captured[path], each[path], atol=1e-6, rtol=1e-6)


@architectures
def test_engines_agree_inside_a_block(architecture: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model(architecture)
    linear = [name for name, module in model.model.named_modules() if isinstance(module, torch.nn.LayerNorm)]
    points: list[int | str] = [1, *linear[1:4], 0] if linear else [1, "model.layers.0.mlp", "model.layers.1.mlp", 0]
    inputs = model.inputs(list(model.encode(texts)))
    traced, hooked = (Splitter(model, points, engine=engine).capture(inputs) for engine in ENGINES)
    assert list(traced) == list(hooked)
    assert len(traced) == len(points)
    for path, tensor in traced.items():
        torch.testing.assert_close(tensor, hooked[path], atol=1e-6, rtol=1e-6)


@engines
def test_the_forward_stops_after_the_deepest_point(engine: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    splitter = Splitter(model, [1, 0], engine=engine)
    inputs = model.inputs(list(model.encode(texts)))
    splitter.capture(inputs)
    calls = []
    for name in ("embeddings", "encoder.layer.0", "encoder.layer.1.attention", "encoder.layer.2", "pooler"):
        module = model.model.get_submodule(f"bert.{name}")
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
    model.model.classifier.register_forward_pre_hook(lambda *_: calls.append("classifier"))
    splitter.capture(inputs)
    assert calls == ["embeddings", "encoder.layer.0", "encoder.layer.1.attention"]


@engines
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_model_is_left_as_it_was(engine: str, architecture: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model(architecture)
    model.model.train()
    next(iter(model.model.base_model.children())).eval()
    next(model.model.parameters()).requires_grad_(False)
    model.tokenizer.padding_side = "left"
    before = state_of(model)
    splitter = Splitter(model, [0, -1, "1.attention", "1.mlp", "head"], engine=engine)
    inputs = model.inputs(list(model.encode(texts)))
    first = splitter.capture(inputs)
    splitter.output_gradients(inputs, 0)
    splitter.outputs(inputs, {"1.mlp": lambda tensor: tensor * 2, "head": lambda tensor: None})
    second = splitter.capture(inputs)
    assert state_of(model) == before
    for path, tensor in first.items():
        # Dropout would make two passes of a model in train mode differ.
        assert torch.equal(tensor, second[path])


@engines
def test_nothing_is_left_after_an_error(engine: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    model.model.train()
    splitter = Splitter(model, [2], engine=engine)
    inputs = model.inputs(list(model.encode(texts)))
    splitter.capture(inputs)

    def fail(*_: object) -> None:
        raise KeyError("out of order")

    handle = model.model.get_submodule("bert.encoder.layer.1").register_forward_pre_hook(fail)
    before = state_of(model)
    with pytest.raises(KeyError, match="out of order"):
        splitter.capture(inputs)
    with pytest.raises(KeyError, match="out of order"):
        splitter.output_gradients(inputs, 2)
    with pytest.raises(KeyError, match="out of order"):
        splitter.outputs(inputs, {2: lambda tensor: tensor})
    assert state_of(model) == before
    assert torch.is_grad_enabled()
    handle.remove()
    before = state_of(model)
    with pytest.raises(ZeroDivisionError):
        splitter.outputs(inputs, {2: lambda tensor: tensor / (1 // 0)})
    assert state_of(model) == before
    splitter.capture(inputs)


@engines
def test_a_forward_exchanged_later_is_used(engine: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    splitter = Splitter(model, [0], engine=engine)
    inputs = model.inputs(list(model.encode(texts)))
    (before,) = splitter.capture(inputs).values()
    block = model.model.get_submodule("bert.encoder.layer.0")
    original = block.forward
    block.forward = lambda *args, **kwargs: original(*args, **kwargs) * 2
    (after,) = splitter.capture(inputs).values()
    torch.testing.assert_close(after, before * 2)


@architectures
def test_gradients_equal_those_of_backward(architecture: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model(architecture)
    path = f"{BLOCKS[architecture]}.1"
    inputs = model.inputs(list(model.encode(texts)))
    activations, logits, gradients = Splitter(model, [1], engine="hooks").output_gradients(inputs, 1)

    reference = copy.deepcopy(model.model)
    kept: list[torch.Tensor] = []

    def keep(_module: object, _args: object, output: torch.Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    reference.get_submodule(path).register_forward_hook(keep)
    for c in range(3):
        kept.clear()
        expected = reference(**inputs).logits
        assert torch.equal(logits, expected)
        expected[:, c].sum().backward()
        assert torch.equal(activations, kept[0])
        torch.testing.assert_close(gradients[:, c], kept[0].grad, atol=1e-6, rtol=1e-5)
    assert gradients.abs().max() > 1e-3
    assert all(parameter.grad is None for parameter in model.model.parameters())


@architectures
@pytest.mark.parametrize("padding_id", ["configured", "none"])
def test_gradients_do_not_depend_on_the_batch(
    architecture: str, padding_id: str, tiny_model: MakeModel, texts: list[str]
) -> None:
    model = tiny_model(architecture)
    if padding_id == "none":
        model.model.config.pad_token_id = None
    splitter = Splitter(model, [1])
    encodings = list(model.encode(texts))
    together = splitter.output_gradients(model.inputs(encodings), 1)
    for row, encoding in enumerate(encodings):
        alone = splitter.output_gradients(model.inputs([encoding]), 1)
        tokens = len(encoding)
        torch.testing.assert_close(together[0][row, :tokens], alone[0][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[1][row], alone[1][0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together[2][row, :, :tokens], alone[2][0], atol=1e-5, rtol=1e-4)
        assert not together[2][row, :, tokens:].any()


def test_gradients_of_chosen_targets(tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("gpt2")
    splitter = Splitter(model, [0, 2])
    inputs = model.inputs(list(model.encode(texts)))
    _, _, every = splitter.output_gradients(inputs, 2)
    rows = torch.arange(len(texts))
    one = torch.tensor([2, 0, 1, 1, 2])
    two = torch.stack([one, (one + 1) % 3], dim=1)
    torch.testing.assert_close(splitter.output_gradients(inputs, 2, one)[2][:, 0], every[rows, one])
    several = splitter.output_gradients(inputs, "transformer.h.2", two)[2]
    torch.testing.assert_close(several, torch.stack([every[rows, two[:, 0]], every[rows, two[:, 1]]], dim=1))


def test_gradients_under_the_callers_modes(tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    splitter = Splitter(model, [1])
    inputs = model.inputs(list(model.encode(texts)))
    expected = splitter.output_gradients(inputs, 1)[2]
    for parameter in model.model.parameters():
        parameter.requires_grad_(False)
    torch.testing.assert_close(splitter.output_gradients(inputs, 1)[2], expected)
    with torch.no_grad():
        torch.testing.assert_close(splitter.output_gradients(inputs, 1)[2], expected)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        under_inference = splitter.output_gradients(model.inputs(list(model.encode(texts))), 1, torch.ones(5).long())[2]
        assert torch.is_inference_mode_enabled()
    torch.testing.assert_close(under_inference[:, 0], expected[:, 1])


def test_captured_tensors_can_be_used_under_autograd(tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    (captured,) = Splitter(model, [0]).capture(model.inputs(list(model.encode(texts)))).values()
    weight = torch.ones(32, requires_grad=True)
    (captured * weight).sum().backward()
    torch.testing.assert_close(weight.grad, captured.sum((0, 1)))


def test_encoder_decoders_are_split_in_the_encoder(tiny_model: MakeModel, texts: list[str]) -> None:
    tokenizer = tiny_model("bert").tokenizer
    t5 = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4, num_labels=3, eos_token_id=3,
        pad_token_id=0, decoder_start_token_id=0,
    )  # fmt: skip
    bart = BartConfig(
        vocab_size=64, d_model=32, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4, num_labels=3,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=40,
        eos_token_id=3, pad_token_id=0, bos_token_id=2, decoder_start_token_id=3, forced_eos_token_id=3,
    )  # fmt: skip
    for network, blocks in (
        (T5ForSequenceClassification(t5).eval(), "transformer.encoder.block"),
        (BartForSequenceClassification(bart).eval(), "model.encoder.layers"),
    ):
        model = TextModel(network, tokenizer)
        assert block_paths(model) == tuple(f"{blocks}.{i}" for i in range(3))
        inputs = model.inputs(list(model.encode(texts)))
        reference = plain_outputs(model, [f"{blocks}.1"], **inputs)[f"{blocks}.1"]
        for engine in ENGINES:
            captured = Splitter(model, [-2], engine=engine).capture(inputs)[f"{blocks}.1"]
            torch.testing.assert_close(captured, reference, atol=1e-6, rtol=1e-6)
        _, logits, _ = Splitter(model, [1]).output_gradients(inputs, 1)
        torch.testing.assert_close(logits, network(**inputs).logits, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([3], r"unknown layer 3: the model has layers 0\.\.2 \(or -3\.\.-1\)"),
        ([-4], r"unknown layer -4"),
        ([True], r"not True"),
        ([1.0], r"not 1\.0"),
        ([None], r"not None"),
        (["bert.encoder.layers.1"], r"unknown layer 'bert\.encoder\.layers\.1'; known: 'bert\.encoder\.layer\.1'"),
        ([2, -1], r"-1 is the layer 'bert\.encoder\.layer\.2', which is in the list already"),
        ([0, "bert.encoder.layer.0"], r"in the list already"),
        ([], r"at least one"),
        ("bert.encoder.layer.1", r"give a list"),
        (2, r"give a list of split points, as in \[2\]"),
        (
            ["bert.encoder.layer.0.attention.self.query.weight"],
            r"unknown layer 'bert\.encoder\.layer\.0\.attention\.self\.query\.weight'; known: ",
        ),
        (["bert.encoder"], r"'bert\.encoder' puts out no tensor but BaseModelOutput"),
        (["bert.encoder.layer"], r"takes no part in the model's forward pass"),
    ],
)
def test_wrong_layers_are_refused(points: list[int | str], message: str, tiny_model: MakeModel) -> None:
    with pytest.raises(InputError, match=message):
        Splitter(tiny_model("bert"), points)


def test_wrong_uses_are_refused(tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    with pytest.raises(UnknownNameError, match="known: 'nnsight', 'hooks'"):
        Splitter(model, [0], engine="jax")
    splitter = Splitter(model, [1])
    inputs = model.inputs(list(model.encode(texts)))
    for layer in (True, 0, "bert.encoder.layer.0"):
        with pytest.raises(UnknownNameError, match="known: 1"):
            splitter.output_gradients(inputs, layer)
    encoder = TextModel(model.model.base_model, model.tokenizer)
    with pytest.raises(InputError, match="not a classifier"):
        Splitter(encoder, [1]).output_gradients(inputs, 1)


@engines
def test_threads_capture_the_same(engine: str, tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("gpt2")
    splitter = Splitter(model, [0, 1], engine=engine)
    batches = [model.inputs([encoding]) for encoding in model.encode(texts)]
    expected = [splitter.capture(batch) for batch in batches]
    wrong: list[object] = []

    def work() -> None:
        for _ in range(10):
            for batch, reference in zip(batches, expected, strict=True):
                captured = splitter.capture(batch)
                wrong.extend(path for path in reference if not torch.equal(captured[path], reference[path]))

    errors: list[BaseException] = []
    hook, threading.excepthook = threading.excepthook, lambda args: errors.append(args.exc_value)  # type: ignore[arg-type]
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
    assert not errors
    assert not wrong


PROCESS = """
import warnings
warnings.simplefilter("error")
import torch
{first}
backward, saves = torch.Tensor.backward, hasattr(object, "save")
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models, pre_tokenizers
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.text_model import TextModel
words = Tokenizer(models.WordLevel({{"[UNK]": 0, "good": 1, "bad": 2}}, unk_token="[UNK]"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
network = BertForSequenceClassification(config).eval()
model = TextModel(network, PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]"))
filters = list(warnings.filters)
splitter = Splitter(model, [0], engine="nnsight")
captured = splitter.capture(model.inputs(list(model.encode(["good bad good"]))))
assert captured["bert.encoder.layer.0"].shape == (1, 3, 8)
assert torch.Tensor.backward is backward
assert hasattr(object, "save") is saves is {saves}
assert warnings.filters == filters
{last}
"""

USER_TRACE = """
import nnsight
mine = nnsight.NNsight(torch.nn.Sequential(torch.nn.Linear(2, 2)))
with mine.trace(torch.ones(1, 2)):
    seen = mine[0].output.save()
assert seen.shape == (1, 2)
"""


@pytest.mark.parametrize(
    ("first", "last", "saves"),
    [("", "import nnsight; nnsight.NNsight", False), ("import nnsight", USER_TRACE, True)],
    ids=["not imported by the user", "imported by the user"],
)
def test_nnsight_changes_nothing_in_the_process(first: str, last: str, saves: bool) -> None:
    program = PROCESS.format(first=first, last=last, saves=saves)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_a_users_own_nnsight_wrapper_goes_on_working(tiny_model: MakeModel, texts: list[str]) -> None:
    import warnings

    import nnsight

    model = tiny_model("gpt2")
    inputs = model.inputs(list(model.encode(texts)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mine = nnsight.NNsight(model.model)
    before = state_of(model)
    (captured,) = Splitter(model, [1], engine="nnsight").capture(inputs).values()
    assert state_of(model) == before
    with torch.no_grad(), mine.trace(**inputs):
        seen = nnsight.save(mine.transformer.h[1].output)
    torch.testing.assert_close(seen, captured, atol=1e-6, rtol=1e-6)


def test_pack_covers_every_row_once_within_the_budget() -> None:
    lengths = [3, 9, 1, 1, 4, 30, 9, 2, 5, 5, 5]
    batches = pack(lengths, 20)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert batches[0] == [5]
    for batch in batches[1:]:
        assert len(batch) * max(lengths[place] for place in batch) <= 20
    flat = [lengths[place] for batch in batches for place in batch]
    assert flat == sorted(lengths, reverse=True)
    assert pack([], 5) == []


def test_a_layer_whose_weights_are_shared_is_refused():
    from transformers import AlbertConfig, AlbertForSequenceClassification

    from tests.conftest import word_tokenizer

    config = AlbertConfig(
        vocab_size=64,
        embedding_size=16,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
    )
    model = TextModel(AlbertForSequenceClassification(config).eval(), word_tokenizer(), name="albert")
    with pytest.raises(InputError, match=r"runs 3 times in one forward pass"):
        Splitter(model, ["albert.encoder.albert_layer_groups.0"])
