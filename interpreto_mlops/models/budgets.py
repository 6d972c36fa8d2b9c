"""The token budget of a batch: found by timing real batches, and kept for the next time."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from interpreto_mlops.models.text_model import TextModel

DEFAULT_TOKEN_BUDGET = 1024
"""Tokens a batch on a CPU: more made every model that was tried slower (benchmarks/attributions.py)."""

ACCELERATOR_TOKEN_BUDGET = 16384
"""Tokens a batch elsewhere; halved where they do not fit."""

CACHE_SWITCH = "INTERPRETO_MLOPS_CACHE"
"""The environment variable that keeps measured budgets off the disk when it is `0`."""

_CANDIDATES = {"cpu": (1024, 512, 2048, 4096)}
_ACCELERATOR_CANDIDATES = (16384, 4096, 65536)
_ROUNDS = 3
_MARGIN = 1.03  # another budget than the usual one must be faster by this

_measured: dict[str, int] = {}


def default_budget(device: torch.device) -> int:
    """Return the budget that is used where none was measured."""
    return DEFAULT_TOKEN_BUDGET if device.type == "cpu" else ACCELERATOR_TOKEN_BUDGET


class BudgetTuner:
    """Tries token budgets on the batches of a job, whose results are used like any others.

    Arguments:
        device: where the model runs.
    """

    def __init__(self, device: torch.device) -> None:
        self.candidates = list(_CANDIDATES.get(device.type, _ACCELERATOR_CANDIDATES))
        self._usual = self.candidates[0]
        self._rates: dict[int, list[float]] = defaultdict(list)

    @property
    def needed(self) -> int:
        """How many tokens must wait for the next try to be worth it, so that a small job is never held up."""
        return 4 * max(self.candidates)

    @property
    def trial(self) -> int | None:
        """The budget to try next, or None when all have been tried."""
        least = min(self.candidates, key=lambda budget: len(self._rates[budget]))
        return least if len(self._rates[least]) < _ROUNDS else None

    def record(self, budget: int, tokens: int, seconds: float) -> None:
        """Take the time of one batch."""
        self._rates[budget].append(tokens / max(seconds, 1e-9))

    def refuse(self, budget: int) -> None:
        """Leave out budgets for which there is no memory."""
        self.candidates = [other for other in self.candidates if other < budget] or [max(1, budget // 2)]

    @property
    def best(self) -> int:
        """The fastest budget; the usual one unless another is clearly faster."""
        rates = {budget: max(self._rates[budget], default=0.0) for budget in self.candidates}
        fastest = max(self.candidates, key=lambda budget: rates[budget])
        usual = rates.get(self._usual, 0.0)
        return fastest if rates[fastest] > _MARGIN * usual else self._usual


def known_budget(model: TextModel) -> int | None:
    """Return the budget that was measured for this model's shape on this device, or None."""
    key = _key(model)
    if key not in _measured and (found := _stored().get(key)) is not None:
        _measured[key] = found
    return _measured.get(key)


def remember_budget(model: TextModel, budget: int) -> None:
    """Keep a measured budget in this process and, where that is possible, in the user's cache folder."""
    key = _key(model)
    _measured[key] = budget
    if os.environ.get(CACHE_SWITCH) == "0":
        return
    path = _path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**_stored(), key: budget}, indent=1, sort_keys=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            file.write(text)
        Path(file.name).replace(path)
    except OSError:
        return  # a cache that cannot be written is no reason to fail


def _path() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "interpreto-mlops" / "token_budgets.json"


def _stored() -> dict[str, int]:
    if os.environ.get(CACHE_SWITCH) == "0":
        return {}
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if type(value) is int and value >= 1}


def _key(model: TextModel) -> str:
    """Name what decides about speed: the model's shape and arithmetic, the device and the threads."""
    shapes = sorted((name, tuple(each.shape), str(each.dtype)) for name, each in model.model.named_parameters())
    digest = hashlib.sha256(json.dumps([type(model.model).__name__, shapes]).encode()).hexdigest()[:16]
    device = model.device
    if device.type == "cuda":
        place = torch.cuda.get_device_name(device)
    else:
        place = f"{device.type}, {platform.node()}, {torch.get_num_threads()} threads"
    asked = ", ".join(f"{name} {value}" for name, value in model.execution.recorded.items())
    return f"{type(model.model).__name__} {digest}, {place}" + (f", {asked}" if asked else "")
