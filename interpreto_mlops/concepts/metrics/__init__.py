"""Metrics of concept dictionaries: of rows, of several fits, of the model's outputs, of labels.

Each metric is an object with name, direction and range in `METRICS`, and a function: `mse(activations, decoded)`.
"""

from interpreto_mlops.concepts.metrics.complexity import (
    ActivationDensity,
    coactivation,
    code_density,
    dead,
    dense,
    density_max,
    hoyer,
    l0,
    l1,
    rows,
    sparsity,
    sparsity_ratio,
)
from interpreto_mlops.concepts.metrics.effect import (
    agreement,
    ce_increase,
    ce_recovered,
    evaluate_effect,
    has_predictions,
    kl,
    kl_recovered,
    logit_recovered,
)
from interpreto_mlops.concepts.metrics.evaluation import Evaluation, evaluate, evaluate_rows
from interpreto_mlops.concepts.metrics.probing import ProbeResult, probe_texts, sparse_probing
from interpreto_mlops.concepts.metrics.reconstruction import (
    cosine,
    fid,
    fvu,
    mse,
    norm_ratio,
    r2,
    relative_bias,
    relative_error,
    sliced_wasserstein,
    wasserstein,
)
from interpreto_mlops.concepts.metrics.registry import METRICS, ConceptMetric
from interpreto_mlops.concepts.metrics.stability import (
    matching,
    max_cosine,
    redundancy,
    shared_fraction,
    stability,
    stability_random,
)

__all__ = [
    "METRICS",
    "ActivationDensity",
    "ConceptMetric",
    "Evaluation",
    "ProbeResult",
    "agreement",
    "ce_increase",
    "ce_recovered",
    "coactivation",
    "code_density",
    "cosine",
    "dead",
    "dense",
    "density_max",
    "evaluate",
    "evaluate_effect",
    "evaluate_rows",
    "fid",
    "fvu",
    "has_predictions",
    "hoyer",
    "kl",
    "kl_recovered",
    "l0",
    "l1",
    "logit_recovered",
    "matching",
    "max_cosine",
    "mse",
    "norm_ratio",
    "probe_texts",
    "r2",
    "redundancy",
    "relative_bias",
    "relative_error",
    "rows",
    "shared_fraction",
    "sliced_wasserstein",
    "sparse_probing",
    "sparsity",
    "sparsity_ratio",
    "stability",
    "stability_random",
    "wasserstein",
]
