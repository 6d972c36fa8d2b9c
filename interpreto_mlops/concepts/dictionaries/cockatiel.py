"""The concepts of COCKATIEL."""

from __future__ import annotations

from dataclasses import dataclass

from interpreto_mlops.concepts.base import DICTIONARIES
from interpreto_mlops.concepts.dictionaries.nmf import NMFConcepts


@DICTIONARIES.register("cockatiel")
@dataclass(kw_only=True, eq=False)
class CockatielConcepts(NMFConcepts):
    """The dictionary of COCKATIEL: the NMF of a non-negative layer's activations of excerpts of texts.

    The factorisation is that of `nmf`; what makes the method is what it is used with: rows of the granularity
    `sentence` or `sample` at the input of the classifier's head behind a ReLU (or `rectify=True`), 25 concepts, and the
    importance `sobol`, which ranks them for a class.

    Arguments:
        n_concepts: how many concepts; 25 as the authors take.
        seed: decides what is drawn at random where there are more concepts than dimensions.
        rectify: set what is negative to zero instead of refusing it; what was there is lost to the reconstruction.

    The other arguments: `Factorisation`.

    Source: Jourdan et al. 2023 (Findings of ACL), section 3.1.
    """

    n_concepts: int = 25
