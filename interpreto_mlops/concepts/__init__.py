"""Concepts of a layer: activations, dictionaries learned from them, what they mean and how much they matter.

Every family of dictionaries is a file in `concepts/dictionaries/`; its class can be imported from here.
"""

from typing import TYPE_CHECKING

from interpreto_mlops.concepts.activations import ActivationSet
from interpreto_mlops.concepts.base import DICTIONARIES, ConceptDictionary
from interpreto_mlops.concepts.importance import ConceptImportance, concept_importance
from interpreto_mlops.concepts.interpretation import ConceptDescription, Context, Word, top_words
from interpreto_mlops.concepts.metrics import METRICS, ConceptMetric, evaluate, stability, stability_random
from interpreto_mlops.concepts.split import ModelWithSplitPoints
from interpreto_mlops.concepts.training import fit_together
from interpreto_mlops.registry import discover

if TYPE_CHECKING:  # for editors and type checkers; the classes themselves are found below
    from interpreto_mlops.concepts.dictionaries.pca import PCAConcepts as PCAConcepts
    from interpreto_mlops.concepts.dictionaries.topk_sae import TopKSAEConcepts as TopKSAEConcepts

discover("interpreto_mlops.concepts.dictionaries")
globals().update({family.__name__: family for _, family in DICTIONARIES.items()})

__all__ = [
    "DICTIONARIES",
    "METRICS",
    "ActivationSet",
    "ConceptDescription",
    "ConceptDictionary",
    "ConceptImportance",
    "ConceptMetric",
    "Context",
    "ModelWithSplitPoints",
    "Word",
    "concept_importance",
    "evaluate",
    "fit_together",
    "stability",
    "stability_random",
    "top_words",
]
__all__ += [family.__name__ for _, family in DICTIONARIES.items()]
__all__.sort()
