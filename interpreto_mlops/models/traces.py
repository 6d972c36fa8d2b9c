"""Traces of nnsight: what passes a model's places, and what is put there instead. This file holds all of nnsight."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from interpreto_mlops.errors import InputError
from interpreto_mlops.models.sites import Replace, Site, copied

# nnsight keeps the state of a trace on the modules, so two traces never run at the same time.
TRACING = threading.RLock()

# What nnsight writes into the dictionary of every module that it wraps.
_MARKS = ("forward", "__nnsight__")

_Marks = list[tuple[nn.Module, dict[str, Any]]]


class Traced:
    """A network wrapped by nnsight, whose marks are on the modules during a trace only."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.before = _marks(network)
        with warnings.catch_warnings():
            # It warns of each submodule called `output`; here modules are found by identity, not by that name.
            warnings.simplefilter("ignore")
            # Without a device of its own it leaves inputs where they are: offloaded weights are nowhere.
            self.root: Any = type("NNsight", (_import_nnsight().NNsight,), {"device": None})(network)
        during = _marks(network)
        _put_marks(self.before)
        self.owner = [0]
        self.during = [
            (module, _in_one_thread(self.owner, module, marks, before))
            for (module, marks), (_, before) in zip(during, self.before, strict=True)
        ]

    def is_stale(self) -> bool:
        """Whether a module's own forward was exchanged since."""
        return _marks(self.network) != self.before

    def capture(self, sites: Sequence[Site], batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return what passes some sites, which must be given in the order in which they are reached."""
        nnsight, root = _import_nnsight(), self.root
        places = self._envoys(sites)
        with self._marked():
            with root.trace(**batch) as tracer:
                found = nnsight.save({site.name: copied(site.read(_here(site, envoy))) for site, envoy in places})
                tracer.stop()
            return dict(found)

    def edit(self, acts: Sequence[tuple[Site, Replace]], batch: dict[str, Any]) -> Any:
        """Return the output of the whole network with some sites changed, given in the order they are reached."""
        nnsight, root = _import_nnsight(), self.root
        places = [(act, *place) for (_, act), place in zip(acts, self._envoys([site for site, _ in acts]), strict=True)]
        with self._marked():
            with root.trace(**batch):
                for act, site, envoy in places:
                    _change(act, site, envoy)
                found = nnsight.save([root.output])
            return found[0]

    def _envoys(self, sites: Sequence[Site]) -> list[tuple[Site, Any]]:
        return [(site, self.root.interleaver.envoys[id(site.module)]) for site in sites]

    @contextmanager
    def _marked(self) -> Iterator[None]:
        self.owner[0] = threading.get_ident()
        _put_marks(self.during)
        try:
            yield
        except _import_nnsight().tracing.tracer.WithBlockNotFoundError as error:
            raise InputError("nnsight cannot read this package's source files; use engine='hooks'") from error
        finally:
            _put_marks(self.before)


def _change(act: Replace, site: Site, envoy: Any) -> None:
    value = _here(site, envoy)
    changed = act(site.read(value))
    if changed is not None and site.is_input:
        envoy.inputs = site.written(value, changed)
    elif changed is not None:
        envoy.output = site.written(value, changed)


def _here(site: Site, envoy: Any) -> Any:
    return envoy.inputs if site.is_input else envoy.output


def _in_one_thread(
    owner: list[int], module: nn.Module, marks: dict[str, Any], before: dict[str, Any]
) -> dict[str, Any]:
    """Return nnsight's marks with a forward that it sees in the tracing thread only; others run the module's own."""
    traced = marks["forward"]
    plain = before.get("forward", functools.partial(type(module).forward, module))

    @functools.wraps(traced)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (traced if threading.get_ident() == owner[0] else plain)(*args, **kwargs)

    return {**marks, "forward": forward}


def _marks(network: nn.Module) -> _Marks:
    return [
        (module, {key: module.__dict__[key] for key in _MARKS if key in module.__dict__})
        for module in network.modules()
    ]


def _put_marks(marks: _Marks) -> None:
    for module, values in marks:
        # Other threads may be running the module.
        module.__dict__.update(values)
        for key in _MARKS:
            if key not in values:
                module.__dict__.pop(key, None)


def _import_nnsight() -> Any:
    """Import nnsight without what its import does to the whole process.

    It gives every object a method `save`, on which other libraries' `hasattr` checks fail, and exchanges
    `Tensor.backward`. Both are taken back, unless the user has imported nnsight before and may want them.
    """
    if "nnsight" in sys.modules:
        return sys.modules["nnsight"]
    backward = torch.Tensor.backward
    module = importlib.import_module("nnsight")
    torch.Tensor.backward = backward  # type: ignore[method-assign]
    if "save" in object.__dict__:
        importlib.import_module("nnsight._c").unmount("save")
    return module
