"""What every concept dictionary is: fitted on activations, encodes and decodes them, saved without pickle."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import json
import os
import platform
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from interpreto_mlops.concepts.belonging import check_belongs
from interpreto_mlops.concepts.interpretation import ConceptDescription
from interpreto_mlops.concepts.learner import Learner, State
from interpreto_mlops.concepts.rows import DataFacts, Rows, as_rows, check_finite
from interpreto_mlops.concepts.training import CHECKPOINT_ROWS, Listener, fit_together
from interpreto_mlops.errors import InputError, IntegrityError, NotFittedError
from interpreto_mlops.registry import NamingRegistry, Registry

FORMAT = "concept-dictionary/1"
WEIGHTS_FILE = "dictionary.safetensors"
CARD_FILE = "dictionary.json"

# Codes and rows of one chunk, in numbers: some 30 MiB in float64.
_CHUNK_NUMBERS = 2**22
_PACKAGES = ("interpreto-mlops", "overcomplete", "scikit-learn", "safetensors", "torch")

Self = TypeVar("Self", bound="ConceptDictionary")
Activations = Rows | torch.Tensor | npt.NDArray[Any]


DICTIONARIES: Registry[type[ConceptDictionary]] = NamingRegistry("concept method")
"""The families of dictionaries by name; a family is one file in `concepts/dictionaries/`."""

FAMILIES: list[Registry[Any]] = [DICTIONARIES]
"""The registries in which the family of a saved dictionary is looked for."""


@dataclass(kw_only=True, eq=False)
class ConceptDictionary(ABC):
    """A set of concepts, each a direction in the activations of one layer.

    A family is a dataclass of its parameters that says how it learns (`begin`) and how it turns rows into codes and
    back (`_encode`, `decode`, `dictionary`). Fitted tensors live in `weights`, and only there.

    Arguments:
        n_concepts: how many concepts, at least 1.
        seed: decides every random choice of the fit.

    Raises:
        InputError: a parameter that cannot be used.
    """

    name: ClassVar[str]
    signed: ClassVar[bool] = False
    sized: ClassVar[bool] = True
    """Whether `n_concepts` is a choice; else it may be None until `fit` finds it in the data."""

    n_concepts: int
    seed: int = 0

    def __post_init__(self) -> None:
        self.weights: State = {}
        self.history_: list[dict[str, float]] = []
        self.provenance: dict[str, Any] = {}
        self.versions: dict[str, str] = {}
        self.descriptions: list[ConceptDescription] | None = None
        if self.sized or self.n_concepts is not None:
            check_integer("n_concepts", self.n_concepts, 1)
        check_integer("seed", self.seed, 0)

    @abstractmethod
    def begin(self, facts: DataFacts) -> Learner:
        """Return what learns this dictionary from the rows that stream by.

        Raises:
            InputError: the parameters do not fit the data.
        """

    @abstractmethod
    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the codes of a chunk, shape (rows, n_concepts), float32."""

    @abstractmethod
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return activations, shape (rows, width), from codes, shape (rows, n_concepts); differentiable.

        Raises:
            NotFittedError: the dictionary is not fitted.
        """

    @property
    def differentiable(self) -> bool:
        """Whether codes have a gradient by the rows: not where an encoder chooses by a search or solves a problem."""
        return False

    def differentiable_codes(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the codes of checked rows, shape (rows, n_concepts), in the graph of the rows if there is one.

        Arguments:
            rows: shape (rows, width), float32, on the CPU.
        """
        return self._encode(rows)

    def gradient(self, codes: torch.Tensor, of_rows: torch.Tensor) -> torch.Tensor:
        """Pull the gradient of a scalar back through the decoder.

        Arguments:
            codes: where, shape (rows, n_concepts).
            of_rows: the gradient with respect to the decoded rows, shape (rows, width).

        Returns:
            The gradient with respect to the codes, shape (rows, n_concepts).
        """
        with torch.enable_grad():
            leaf = codes.detach().clone().requires_grad_(True)
            return torch.autograd.grad(self.decode(leaf), leaf, of_rows)[0]

    @property
    @abstractmethod
    def dictionary(self) -> torch.Tensor:
        """The directions of the concepts, shape (n_concepts, width)."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments; `type(self)(**parameters)` is the same dictionary, not fitted."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def width(self) -> int:
        """The width of the layer that it was fitted on."""
        return self.dictionary.shape[1]

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` or `load` has given it weights."""
        return bool(self.weights)

    def fit(
        self: Self,
        activations: Activations,
        *,
        order_seed: int = 0,
        progress: bool | None = None,
        checkpoint: str | Path | None = None,
        checkpoint_every: int = CHECKPOINT_ROWS,
        listener: Listener | None = None,
    ) -> Self:
        """Learn the concepts of activations, anew if there were any.

        Arguments:
            activations: shape (rows, width), at least as many rows as concepts.

        The other arguments: `fit_together`, for which this dictionary has the place 0.

        Raises:
            InputError: a row is NaN or infinite, or the parameters do not fit the data, or the checkpoint is of another
                training.
            IntegrityError: the checkpoint is damaged.
        """
        fit_together(
            [self],
            activations,
            order_seed=order_seed,
            progress=progress,
            checkpoint=checkpoint,
            checkpoint_every=checkpoint_every,
            listener=listener,
        )
        return self

    def complete(self, weights: State, history: list[dict[str, float]], provenance: Mapping[str, Any]) -> None:
        """Take over what a learner has found; labels of an earlier fit are dropped."""
        self.weights = {name: tensor.detach().to(torch.float32).contiguous() for name, tensor in weights.items()}
        self.history_ = history
        self.provenance = copy.deepcopy(dict(provenance))
        self.versions = _versions()
        self.descriptions = None

    def encode(self, activations: Activations, *, allow_mismatch: bool = False) -> torch.Tensor:
        """Return how much of each concept every row holds.

        A row's code is the same alone, in any batch, and after save and load.

        Arguments:
            activations: shape (rows, width).
            allow_mismatch: take an `ActivationSet` of another model or layer than the dictionary was fitted on.

        Returns:
            Codes, shape (rows, n_concepts), float32, on the CPU.

        Raises:
            NotFittedError: the dictionary is not fitted.
            InputError: rows of another width, or NaN.
            IntegrityError: activations of another model or layer.
        """
        rows = as_rows(activations)
        self.tensor(next(iter(self.weights), ""))  # how many concepts some have is known only when they are fitted
        codes = torch.empty(len(rows), self.n_concepts)
        place = 0
        for _, part in self.encode_chunks(rows, allow_mismatch=allow_mismatch):
            codes[place : place + len(part)] = part
            place += len(part)
        return codes

    @torch.no_grad()
    def encode_chunks(
        self, activations: Activations, *, allow_mismatch: bool = False
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the rows and their codes, chunk by chunk in order, in bounded memory; arguments as for `encode`.

        Raises:
            NotFittedError: the dictionary is not fitted.
            InputError: rows of another width, or NaN.
            IntegrityError: activations of another model or layer.
        """
        rows = as_rows(activations)
        if rows.width != self.width:
            raise InputError(f"this {self.name} dictionary takes activations of width {self.width}, not {rows.width}")
        check_belongs(self, rows, allow_mismatch=allow_mismatch)
        size = max(1, _CHUNK_NUMBERS // (self.n_concepts + self.width))
        place = 0
        for chunk in rows.batches(size):
            check_finite(chunk, place, rows)
            place += len(chunk)
            yield chunk, self._encode(chunk)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a fitted tensor.

        Raises:
            NotFittedError: the dictionary is not fitted.
        """
        if not self.weights:
            raise NotFittedError(
                f"this {type(self).__name__} is not fitted; call fit(activations) or load(folder) first"
            )
        return self.weights[name]

    def save(self, folder: str | Path) -> Path:
        """Write `dictionary.safetensors` and `dictionary.json` into a folder, which is made if needed.

        Returns:
            The folder.

        Raises:
            NotFittedError: the dictionary is not fitted.
        """
        shape = [self.n_concepts, self.width]
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _replace(folder / WEIGHTS_FILE, lambda path: save_file(self.weights, path))
        card = {
            "format": FORMAT,
            "method": self.name,
            "signed": self.signed,
            "parameters": self.parameters,
            "shape": shape,
            "provenance": self.provenance,
            "versions": self.versions,
            "weights_sha256": _sha256(folder / WEIGHTS_FILE),
            "history": self.history_,
            "descriptions": None if self.descriptions is None else [d.to_dict() for d in self.descriptions],
        }
        text = json.dumps(card, indent=1, ensure_ascii=False, allow_nan=False)
        _replace(folder / CARD_FILE, lambda path: path.write_text(text, encoding="utf-8"))
        return folder

    def hidden(self) -> ConceptDictionary:
        """Return the same dictionary whose labels, and what it says of its data, hold no texts; weights are shared."""
        without = copy.copy(self)
        if self.descriptions is not None:
            without.descriptions = [each.hidden() for each in self.descriptions]
        data = {key: value for key, value in (self.provenance.get("data") or {}).items() if key != "source"}
        without.provenance = {**self.provenance, **({"data": data} if data else {})}
        return without

    @classmethod
    def load(cls: type[Self], folder: str | Path) -> Self:
        """Read a dictionary of any family that `save` has written.

        Raises:
            IntegrityError: a file is missing, damaged, changed, or of another format.
            UnknownNameError: its family is not known here.
            InputError: called on a family (`PCAConcepts.load`) that is not the dictionary's.
        """
        folder = Path(folder)
        card = _read_card(folder / CARD_FILE)
        families = next((each for each in FAMILIES if card["method"] in each), DICTIONARIES)
        family: type[ConceptDictionary] = families.get(card["method"])
        if not issubclass(family, cls):
            raise InputError(f"{str(folder)!r} holds a {card['method']!r} dictionary, not {cls.__name__}")
        try:
            loaded = family(**card["parameters"])
            descriptions = card["descriptions"]
            loaded.descriptions = descriptions and [ConceptDescription.from_dict(entry) for entry in descriptions]
            loaded.history_, loaded.provenance, loaded.versions = card["history"], card["provenance"], card["versions"]
            loaded.weights = _read_weights(folder / WEIGHTS_FILE, card["weights_sha256"])
            shape = list(loaded.dictionary.shape)
        except (KeyError, TypeError, InputError) as error:
            raise IntegrityError(
                f"{str(folder / CARD_FILE)!r} is not the card of a {family.name} dictionary: {error}"
            ) from error
        if shape != [loaded.n_concepts, card["shape"][1]]:
            raise IntegrityError(
                f"the weights in {str(folder)!r} have the shape {shape}, which is not what the card says"
            )
        return loaded


def check_integer(name: str, value: object, least: int) -> None:
    """Refuse a parameter that is not an integer of at least `least`.

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}")


def check_number(name: str, value: object, least: float, below: float = float("inf")) -> None:
    """Refuse a parameter that is not a number in [least, below).

    Raises:
        InputError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < below:
        raise InputError(f"{name} must be a number from {least} to below {below}, not {value!r}")


def check_enough_rows(facts: DataFacts, n_concepts: int) -> None:
    """Refuse to learn more concepts than there are rows.

    Raises:
        InputError: there are fewer rows.
    """
    if facts.n_rows < n_concepts:
        raise InputError(
            f"{n_concepts} concepts need at least as many rows of activations, and there are {facts.n_rows}"
        )


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write under another name and rename, so that a reader never sees half a file."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IntegrityError(f"cannot read the dictionary's card {str(path)!r}: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT or "method" not in card:
        raise IntegrityError(f"{str(path)!r} is not a card of the format {FORMAT!r}")
    return card


def _read_weights(path: Path, expected: str) -> State:
    try:
        found = _sha256(path)
        if found != expected:
            raise IntegrityError(f"the weights {str(path)!r} were changed or damaged: sha256 {found}, not {expected}")
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise IntegrityError(f"cannot read the dictionary's weights {str(path)!r}: {error}") from error


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue  # a checkout on the path is not an installed distribution
    return versions
