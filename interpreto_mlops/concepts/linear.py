"""Dictionaries whose encoder and decoder are matrices, with the constants that centre and scale the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.concepts.training import State
from interpreto_mlops.errors import InputError


@dataclass(kw_only=True, eq=False)
class LinearDecoder(ConceptDictionary):
    """rows = scale · codes · decoder + mean, whatever the encoder is.

    Shapes: `mean` (width,), `scale` (), `decoder` (n_concepts, width).
    """

    @property
    def dictionary(self) -> torch.Tensor:
        """The decoder's rows, shape (n_concepts, width)."""
        return self.tensor("decoder")

    @property
    def mean(self) -> torch.Tensor:
        """What is added after decoding, shape (width,)."""
        return self.tensor("mean")

    @property
    def scale(self) -> torch.Tensor:
        """The unit of the codes: one number by which decoded rows are multiplied."""
        return self.tensor("scale")

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return activations, shape (rows, width), from codes, shape (rows, n_concepts); differentiable.

        Raises:
            NotFittedError: the dictionary is not fitted.
            InputError: codes of another number of concepts.
        """
        self._check_codes(codes)
        return codes @ self.dictionary * self.scale + self.mean

    def _check_codes(self, codes: torch.Tensor) -> None:
        self.tensor("mean")  # there is none before it is fitted
        if codes.shape[-1] != self.n_concepts:
            raise InputError(f"codes of this dictionary have {self.n_concepts} columns, not {codes.shape[-1]}")

    def gradient(self, codes: torch.Tensor, of_rows: torch.Tensor) -> torch.Tensor:
        """Return d g / d codes = (d g / d rows) · decoderᵀ · scale: exact, whatever the codes are."""
        return of_rows @ self.dictionary.T * self.scale


@dataclass(kw_only=True, eq=False)
class LinearDictionary(LinearDecoder):
    """codes = activate((rows − mean) / scale · encoderᵀ + encoder_bias); rows = scale · codes · decoder + mean.

    Shapes: as `LinearDecoder`, and `encoder` (n_concepts, width), `encoder_bias` (n_concepts,).
    """

    @property
    def differentiable(self) -> bool:
        """Where the same concepts are chosen, codes are linear in the rows."""
        return True

    def activate(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the codes of the encoder's outputs, shape (rows, n_concepts); every row by itself."""
        return codes

    def _encode(self, rows: torch.Tensor) -> torch.Tensor:
        # In float64 a product's rounding depends on the batch's size only far below float32, so that a choice among
        # nearly equal concepts never depends on the company that a row is encoded in.
        mean, scale, encoder, bias = (
            self.tensor(name).double() for name in ("mean", "scale", "encoder", "encoder_bias")
        )
        return self.activate(torch.addmm(bias, (rows.double() - mean) / scale, encoder.T)).float()


def linear_state(
    mean: torch.Tensor, scale: float, encoder: torch.Tensor, encoder_bias: torch.Tensor, decoder: torch.Tensor
) -> State:
    """Return the tensors of a `LinearDictionary` by name."""
    return {
        "mean": mean.clone(),
        "scale": torch.tensor(scale),
        "encoder": encoder.clone(),
        "encoder_bias": encoder_bias.clone(),
        "decoder": decoder.clone(),
    }
