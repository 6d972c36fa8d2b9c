"""The model from a layer on: the same as the whole model, in this thread only, and nothing is left behind."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from interpreto_mlops.models.requests import ClassLogits
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.suffix import Suffix, _passing
from interpreto_mlops.models.text_model import TextModel
from tests.attributions.language_models import language_model
from tests.conftest import ARCHITECTURES, word_tokenizer
from tests.models.architectures import random_model

MakeModel = Callable[..., TextModel]


def reading(suffix: Suffix, texts: list[str], put: torch.Tensor | None = None) -> torch.Tensor:
    model = suffix.model
    inputs = model.inputs(list(model.encode(texts)))
    with torch.no_grad():
        return suffix.read(inputs, [ClassLogits()] * len(texts), lambda output: output if put is None else put)


def activations(split: Splitter, texts: list[str]) -> torch.Tensor:
    return split.capture(split.model.inputs(list(split.model.encode(texts))))[split.split_points[0]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_blocks_before_the_layer_do_not_run_and_nothing_else_changes(
    architecture: str, layer: int, tiny_model: MakeModel, texts: list[str]
) -> None:
    model = tiny_model(architecture)
    split = Splitter(model, [layer], engine="hooks")
    put = activations(split, texts).roll(1, dims=0) * 1.5
    with split.replaced(layer, lambda output: put), torch.no_grad():
        whole = model.model(**model.inputs(list(model.encode(texts)))).logits
    suffix = Suffix(split, split.split_points[0])
    torch.testing.assert_close(reading(suffix, texts, put), whole)
    assert suffix.skips
    ran = Counter[int]()
    blocks = suffix._passed
    attentions = [next(m for name, m in block.named_modules() if "att" in name) for block in blocks]
    handles = [m.register_forward_hook(lambda *_: ran.update([1])) for m in attentions]
    torch.testing.assert_close(reading(suffix, texts, put), whole)
    for handle in handles:
        handle.remove()
    assert len(blocks) == layer + 1
    assert not ran
    assert not any("forward" in module.__dict__ for module in model.model.modules())


@pytest.mark.parametrize("architecture", ["deberta", "mpnet", "bloom", "falcon"])
def test_blocks_that_put_out_more_than_others_need_do_not_run(architecture: str, texts: list[str]) -> None:
    model = TextModel(random_model(architecture), word_tokenizer(), name=architecture)
    split = Splitter(model, [1], engine="hooks")
    put = activations(split, texts).roll(1, dims=0) * 1.5
    with split.replaced(1, lambda output: put), torch.no_grad():
        whole = model.model(**model.inputs(list(model.encode(texts)))).logits
    suffix = Suffix(split, split.split_points[0])
    torch.testing.assert_close(reading(suffix, texts, put), whole)
    assert suffix.skips
    ran = list[object]()
    inside = [module for block in suffix._passed for module in block.modules() if isinstance(module, torch.nn.Linear)]
    handles = [module.register_forward_hook(lambda *each: ran.append(each)) for module in inside]
    torch.testing.assert_close(reading(suffix, texts, put), whole)
    for handle in handles:
        handle.remove()
    assert handles
    assert not ran


def test_blocks_that_hand_on_more_than_hidden_states_are_run() -> None:
    model = language_model("t5")
    split = Splitter(model, [0], engine="hooks")
    (encoding,) = model.encode(["the food was great"])
    ids = torch.from_numpy(encoding.ids)[None]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "decoder_input_ids": ids,
        "decoder_attention_mask": torch.ones_like(ids),
    }
    put = split.capture({name: inputs[name] for name in ("input_ids", "attention_mask")})[split.split_points[0]] * 2
    suffix = Suffix(split, split.split_points[0])
    with torch.no_grad(), split.replaced(0, lambda output: put):
        whole = model.model(**inputs).logits
    with torch.no_grad():
        short = suffix.read(inputs, [ClassLogits()], lambda output: put)
    torch.testing.assert_close(short, whole)
    assert not suffix.skips


class Remembering(torch.nn.Module):
    """A block that adds what the first block has remembered of its own last pass."""

    def __init__(self, block: torch.nn.Module, memory: list[torch.Tensor], first: bool) -> None:
        super().__init__()
        self.block, self.memory, self.first = block, memory, first

    def forward(self, hidden_states: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        if self.first:
            self.memory[:] = [hidden_states[..., :1]]
            return self.block(hidden_states, *args, **kwargs)
        return self.block(hidden_states, *args, **kwargs) + 3 * self.memory[0]


def test_blocks_that_are_remembered_by_later_ones_are_run(tiny_model: MakeModel, texts: list[str]) -> None:
    model, memory = tiny_model("bert"), list[torch.Tensor]()
    layers = model.model.bert.encoder.layer
    for place in range(3):
        layers[place] = Remembering(layers[place], memory, first=place == 0)
    split = Splitter(model, [1], engine="hooks")
    suffix = Suffix(split, split.split_points[0])
    put = activations(split, texts)
    with split.replaced(1, lambda output: put), torch.no_grad():
        whole = model.model(**model.inputs(list(model.encode(texts)))).logits
    torch.testing.assert_close(reading(suffix, texts, put), whole)
    assert not suffix.skips


def test_a_place_inside_a_block_is_exchanged_in_the_whole_model(tiny_model: MakeModel, texts: list[str]) -> None:
    model = tiny_model("bert")
    split = Splitter(model, ["bert.encoder.layer.1.output"], engine="hooks")
    suffix = Suffix(split, split.split_points[0])
    with torch.no_grad():
        plain = model.model(**model.inputs(list(model.encode(texts)))).logits
    torch.testing.assert_close(reading(suffix, texts), plain)
    assert not suffix.skips


@pytest.mark.parametrize("first_ends", [True, False])
def test_threads_that_overlap_leave_nothing_and_do_not_see_each_other(
    first_ends: bool, tiny_model: MakeModel, texts: list[str]
) -> None:
    model = tiny_model("bert")
    blocks = list(model.model.bert.encoder.layer[:2])
    inputs = model.inputs(list(model.encode(texts)))
    with torch.no_grad():
        plain = model.model(**inputs).logits
    opened, close, found = threading.Event(), threading.Event(), list[torch.Tensor]()

    def other() -> None:
        with torch.no_grad():
            found.append(model.model(**inputs).logits)
            with _passing(blocks, {}):
                opened.set()
                close.wait(20)
                found.append(model.model(**inputs).logits)
            found.append(model.model(**inputs).logits)

    thread = threading.Thread(target=other)
    with _passing(blocks, {}), torch.no_grad():
        thread.start()
        assert opened.wait(20)
        inside = model.model(**inputs).logits
        if not first_ends:
            close.set()
            thread.join()
            torch.testing.assert_close(model.model(**inputs).logits, inside)
    close.set()
    thread.join()
    assert not torch.allclose(inside, plain)
    for got, expected in zip(found, (plain, inside, plain), strict=True):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        assert torch.equal(model.model(**inputs).logits, plain)
    assert not any("forward" in module.__dict__ for module in model.model.modules())


def test_a_forward_of_the_blocks_own_comes_back(tiny_model: MakeModel) -> None:
    block = tiny_model("bert").model.bert.encoder.layer[0]

    def own(*args: object, **kwargs: object) -> object:
        return args[0]

    block.forward = own
    with pytest.raises(ZeroDivisionError), _passing([block], {}):
        assert block.forward is not own
        raise ZeroDivisionError
    assert block.forward is own
