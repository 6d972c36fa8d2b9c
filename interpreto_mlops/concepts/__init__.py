"""Concepts of a layer: activations, dictionaries learned from them, what they mean and how much they matter.

Every family of dictionaries is a file in `concepts/dictionaries/`; its class can be imported from here.
"""

from typing import TYPE_CHECKING

from interpreto_mlops.concepts.activations import ActivationSet
from interpreto_mlops.concepts.base import DICTIONARIES, ConceptDictionary
from interpreto_mlops.concepts.belonging import check_belongs
from interpreto_mlops.concepts.importance import (
    IMPORTANCE,
    ConceptImportance,
    LocalImportance,
    concept_importance,
    local_importance,
)
from interpreto_mlops.concepts.interpretation import ConceptDescription, Context, Label, Word, top_words
from interpreto_mlops.concepts.interpretation.aligned_labels import AlignedLabels, Alignment, align
from interpreto_mlops.concepts.interpretation.base import INTERPRETATIONS, Interpretation, TokenScore, interpret
from interpreto_mlops.concepts.interpretation.llm_labels import LabelAttempt, LabelledConcepts, LLMLabels
from interpreto_mlops.concepts.interpretation.token_change import TokenChange, TokenEffects
from interpreto_mlops.concepts.interpretation.top_k_inputs import ConceptInputs, Example, TopKInputs
from interpreto_mlops.concepts.interpretation.vocab_proj import VocabProj, VocabProjection
from interpreto_mlops.concepts.interpretation_metrics import (
    INTERPRETATION_METRICS,
    Clarity,
    Detection,
    Faithfulness,
    Fuzzing,
    InterpretationScore,
    Purity,
    Responsiveness,
    score_labels,
)
from interpreto_mlops.concepts.interventions import InterventionEffect, ablate, intervention_effect, steer
from interpreto_mlops.concepts.metrics import (
    METRICS,
    ActivationDensity,
    ConceptMetric,
    evaluate,
    evaluate_effect,
    evaluate_rows,
    probe_texts,
    sparse_probing,
    stability,
    stability_random,
)
from interpreto_mlops.concepts.probes import (
    PROBES,
    Probe,
    ProbeScores,
    TCAVResult,
    cross_validate,
    label_concepts,
    tcav,
)
from interpreto_mlops.concepts.simulation import concept_study, consim
from interpreto_mlops.concepts.split import ModelWithSplitPoints
from interpreto_mlops.concepts.targets import ConceptTargets, concept_targets
from interpreto_mlops.concepts.training import fit_together
from interpreto_mlops.registry import discover

if TYPE_CHECKING:  # for editors and type checkers; the classes themselves are found below
    from interpreto_mlops.concepts.dictionaries.batchtopk_sae import BatchTopKSAEConcepts as BatchTopKSAEConcepts
    from interpreto_mlops.concepts.dictionaries.cockatiel import CockatielConcepts as CockatielConcepts
    from interpreto_mlops.concepts.dictionaries.convex_nmf import ConvexNMFConcepts as ConvexNMFConcepts
    from interpreto_mlops.concepts.dictionaries.dictionary_learning import (
        DictionaryLearningConcepts as DictionaryLearningConcepts,
    )
    from interpreto_mlops.concepts.dictionaries.ica import ICAConcepts as ICAConcepts
    from interpreto_mlops.concepts.dictionaries.jumprelu_sae import JumpReLUSAEConcepts as JumpReLUSAEConcepts
    from interpreto_mlops.concepts.dictionaries.kmeans import KMeansConcepts as KMeansConcepts
    from interpreto_mlops.concepts.dictionaries.mp_sae import MPSAEConcepts as MPSAEConcepts
    from interpreto_mlops.concepts.dictionaries.neurons import NeuronsAsConcepts as NeuronsAsConcepts
    from interpreto_mlops.concepts.dictionaries.nmf import NMFConcepts as NMFConcepts
    from interpreto_mlops.concepts.dictionaries.pca import PCAConcepts as PCAConcepts
    from interpreto_mlops.concepts.dictionaries.ra_topk_sae import RATopKSAEConcepts as RATopKSAEConcepts
    from interpreto_mlops.concepts.dictionaries.semi_nmf import SemiNMFConcepts as SemiNMFConcepts
    from interpreto_mlops.concepts.dictionaries.sparse_pca import SparsePCAConcepts as SparsePCAConcepts
    from interpreto_mlops.concepts.dictionaries.svd import SVDConcepts as SVDConcepts
    from interpreto_mlops.concepts.dictionaries.topk_sae import TopKSAEConcepts as TopKSAEConcepts
    from interpreto_mlops.concepts.dictionaries.vanilla_sae import VanillaSAEConcepts as VanillaSAEConcepts
    from interpreto_mlops.concepts.probes.centroids import CosineProbe as CosineProbe
    from interpreto_mlops.concepts.probes.centroids import DotProductProbe as DotProductProbe
    from interpreto_mlops.concepts.probes.centroids import MeanDifferenceProbe as MeanDifferenceProbe
    from interpreto_mlops.concepts.probes.distances import DiagonalMahalanobisProbe as DiagonalMahalanobisProbe
    from interpreto_mlops.concepts.probes.distances import SquaredDistanceProbe as SquaredDistanceProbe
    from interpreto_mlops.concepts.probes.distances import SVDDProbe as SVDDProbe
    from interpreto_mlops.concepts.probes.regressions import LinearSVMProbe as LinearSVMProbe
    from interpreto_mlops.concepts.probes.regressions import LogisticProbe as LogisticProbe
    from interpreto_mlops.concepts.probes.regressions import RidgeProbe as RidgeProbe

discover("interpreto_mlops.concepts.dictionaries")
discover("interpreto_mlops.concepts.interpretation")
globals().update({family.__name__: family for _, family in DICTIONARIES.items()})
globals().update({family.__name__: family for _, family in (*DICTIONARIES.items(), *PROBES.items())})

__all__ = [
    "DICTIONARIES",
    "IMPORTANCE",
    "INTERPRETATIONS",
    "INTERPRETATION_METRICS",
    "METRICS",
    "PROBES",
    "ActivationDensity",
    "ActivationSet",
    "AlignedLabels",
    "Alignment",
    "Clarity",
    "ConceptDescription",
    "ConceptDictionary",
    "ConceptImportance",
    "ConceptInputs",
    "ConceptMetric",
    "ConceptTargets",
    "Context",
    "Detection",
    "Example",
    "Faithfulness",
    "Fuzzing",
    "Interpretation",
    "InterpretationScore",
    "InterventionEffect",
    "LLMLabels",
    "Label",
    "LabelAttempt",
    "LabelledConcepts",
    "LocalImportance",
    "ModelWithSplitPoints",
    "Probe",
    "ProbeScores",
    "Purity",
    "Responsiveness",
    "TCAVResult",
    "TokenChange",
    "TokenEffects",
    "TokenScore",
    "TopKInputs",
    "VocabProj",
    "VocabProjection",
    "Word",
    "ablate",
    "align",
    "check_belongs",
    "concept_importance",
    "concept_study",
    "concept_targets",
    "consim",
    "cross_validate",
    "evaluate",
    "evaluate_effect",
    "evaluate_rows",
    "fit_together",
    "interpret",
    "intervention_effect",
    "label_concepts",
    "local_importance",
    "probe_texts",
    "score_labels",
    "sparse_probing",
    "stability",
    "stability_random",
    "steer",
    "tcav",
    "top_words",
]
__all__ += [family.__name__ for _, family in (*DICTIONARIES.items(), *PROBES.items())]
__all__.sort()
