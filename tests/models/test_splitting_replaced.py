"""A split point's output exchanged: in scores, in this thread only, and undone, whatever happens."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from interpreto_mlops.errors import UnknownNameError
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.models.text_model import TextModel

MakeModel = Callable[..., TextModel]
architectures = pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2", "llama"])


@pytest.fixture
def inputs(texts: list[str]) -> Callable[[TextModel], dict[str, torch.Tensor]]:
    return lambda model: model.inputs(list(model.encode(texts)))


def logits(model: TextModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad(), model.evaluating():
        return model.model(**batch).logits  # type: ignore[no-any-return]


@architectures
def test_what_is_put_in_is_what_the_next_layers_see(
    architecture: str, tiny_model: MakeModel, inputs: Callable[[TextModel], dict[str, torch.Tensor]]
) -> None:
    model = tiny_model(architecture)
    split, batch = Splitter(model, [0, -1], engine="hooks"), inputs(model)
    shift = torch.linspace(-1, 1, split.widths[split.split_points[0]])
    with split.replaced(0, lambda output: output + shift):
        moved = split.capture(batch)
    first, last = split.split_points
    plain = split.capture(batch)
    torch.testing.assert_close(moved[first], plain[first] + shift)
    with split.replaced(-1, lambda output: plain[last]), split.replaced(0, lambda output: output * 0):
        torch.testing.assert_close(logits(model, batch), logits_without(model, batch))


def logits_without(model: TextModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The plain logits, computed where no replacement of this thread can reach."""
    found: list[torch.Tensor] = []
    thread = threading.Thread(target=lambda: found.append(logits(model, batch)))
    thread.start()
    thread.join()
    return found[0]


def test_none_leaves_the_output_alone(
    tiny_model: MakeModel, inputs: Callable[[TextModel], dict[str, torch.Tensor]]
) -> None:
    model = tiny_model("bert")
    batch, seen = inputs(model), []
    with Splitter(model, [1]).replaced(1, lambda output: seen.append(output.shape)):
        inside = logits(model, batch)
    assert torch.equal(inside, logits(model, batch))
    assert len(seen) == 1


def test_it_is_undone_after_an_error(
    tiny_model: MakeModel, inputs: Callable[[TextModel], dict[str, torch.Tensor]]
) -> None:
    model = tiny_model("bert")
    split, batch = Splitter(model, [1]), inputs(model)
    before = logits(model, batch)
    with pytest.raises(ZeroDivisionError), split.replaced(1, lambda output: output * 0):
        assert not torch.equal(logits(model, batch), before)
        raise ZeroDivisionError
    assert torch.equal(logits(model, batch), before)
    assert not any(module._forward_hooks for module in model.model.modules())
    with pytest.raises(UnknownNameError, match="split point 0"), split.replaced(0, lambda output: output):
        pass
