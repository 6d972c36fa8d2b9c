"""The randomisation sanity check: an explanation of the model must change when the model's weights do."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from tqdm import tqdm

from interpreto_mlops.attributions.base import Attributor, as_integer, hidden
from interpreto_mlops.attributions.metrics.base import METRICS, Metric, nan_mean, share_beaten
from interpreto_mlops.attributions.metrics.game_metrics import pearson
from interpreto_mlops.attributions.metrics.max_sensitivity import (
    check_explainer,
    check_method,
    explained_again,
)
from interpreto_mlops.attributions.metrics.results import Floats, SanityResult
from interpreto_mlops.attributions.recall import recalled
from interpreto_mlops.attributions.results import Attribution, AttributionSet
from interpreto_mlops.errors import InputError
from interpreto_mlops.models.splitting import block_paths
from interpreto_mlops.models.text_model import TextModel


@METRICS.register("sanity_check")
@dataclass(frozen=True, kw_only=True)
class SanityCheck(Metric):
    """Rank correlation of the first explanation with that of a model of random weights: in the band around 0 is good.

    On a copy of the model, weights are drawn anew from the head downwards, block by block, and each text is explained
    again at every depth, for the same target. `SanityResult.by_depth()` is the figure. Attention rollout and RFEM do
    not see the class: there this checks the attention alone. Where input and output embeddings are the same weights,
    the head is drawn anew with the embeddings, last. All texts share one random model, so that their correlations go
    together: near the edge of the band, repeat with other seeds.
    Source: Adebayo et al. 2018 (arXiv 1810.03292), section 3 (cascading randomisation).

    Arguments:
        explainer: the method, as it made the explanations.
        n_random: random permutations of each text's scores, which make the band.
        seed: of the weights and the permutations.
    """

    name: ClassVar[str] = "sanity_check"
    higher_is_better: ClassVar[bool] = False
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    costly: ClassVar[bool] = True
    needs: ClassVar[str] = "explainer"

    explainer: Attributor = field(kw_only=False, repr=False)
    n_random: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        check_explainer(self.name, self.explainer)
        object.__setattr__(self, "n_random", as_integer("n_random", self.n_random, 1))
        object.__setattr__(self, "seed", as_integer("seed", self.seed, 0))

    def __call__(self, explanations: AttributionSet, *, progress: bool | None = False) -> SanityResult:
        """Explain the texts again with ever more random weights.

        Arguments:
            explanations: by the explainer. Texts of fewer than two elements, or with constant scores, are skipped.
            progress: True for a progress bar over depths, False for none, None when the output is a terminal.

        Raises:
            InputError: the explanations are of another method.
        """
        check_method(self.name, self.explainer, explanations)
        if any(target.layer is not None for item in explanations for target in item.targets):
            raise InputError(
                f"{self.name} draws weights anew from the head downwards, of which a concept's layer sees little; it "
                "judges explanations of a model's outputs alone"
            )
        skipped = [_reason(item) for item in explanations]
        kept = [item for item, reason in zip(explanations, skipped, strict=True) if reason is None]
        first = [item.scores for item in kept]
        model, explainer = self._copy()
        steps = cascade(model)
        depths, found = ["nothing"], [first]
        for name, modules in tqdm(steps, desc=self.name, unit="depth", disable=hidden(progress), leave=False):
            reinitialise(model, modules, self.seed + len(depths))
            depths.append(name)
            asked = recalled(model, kept)
            programs = (explained_again(explainer, question, elements) for _, question, elements in asked)
            found.append(list(model.engine.run(programs)))
        counters = model.engine.counters.as_dict()
        return self._result(explanations, skipped, depths, found, counters)

    def _copy(self) -> tuple[TextModel, Attributor]:
        mine = self.explainer.model
        model = TextModel(copy.deepcopy(mine.model), mine.tokenizer, name=mine.name, uri=mine.uri)
        return model, replace(self.explainer, model=model)

    def _result(
        self,
        explanations: AttributionSet,
        skipped: Sequence[str | None],
        depths: list[str],
        found: list[list[Floats]],
        counters: dict[str, float],
    ) -> SanityResult:
        places = np.flatnonzero([reason is None for reason in skipped])
        signed, absolute = (np.full((len(depths), len(skipped)), np.nan) for _ in range(2))
        random = np.full((2, len(skipped), self.n_random), np.nan)
        for k, place in enumerate(places):
            first = found[0][k]
            for depth, scores in enumerate(found):
                signed[depth, place], absolute[depth, place] = _both(first, scores[k])
            random[:, place] = self._permuted(explanations[int(place)])
        values = signed[-1]
        better = [share_beaten(-abs(value), -np.abs(row)) for value, row in zip(values, random[0], strict=True)]
        reasons = [reason for reason in skipped if reason is not None]
        draws = nan_mean(random, axis=1)
        bands = [
            tuple(np.quantile(row[~np.isnan(row)], [0.025, 0.975])) if len(places) else (np.nan,) * 2 for row in draws
        ]
        return SanityResult(
            name=self.name,
            method=explanations.method,
            values=values,
            random_values=nan_mean(random[0], axis=1),
            better_than_random=np.asarray(better, dtype=np.float64),
            higher_is_better=self.higher_is_better,
            skipped={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
            parameters=self.parameters,
            counters=counters,
            bounds=self.bounds,
            random_draws=draws[0],
            depths=tuple(depths),
            signed=signed,
            absolute=absolute,
            band=bands[0],
            absolute_band=bands[1],
        )

    def _permuted(self, item: Attribution) -> Floats:
        """Return the correlations with the item's own scores permuted, signed and absolute, shape (2, n_random)."""
        digest = hashlib.sha256(f"{self.seed}:{item.text}".encode(errors="surrogatepass")).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:7], "big"))
        drawn = (np.stack([_shuffled(row, rng) for row in item.scores]) for _ in range(self.n_random))
        return np.asarray([_both(item.scores, scores) for scores in drawn]).T


def _both(first: Floats, second: Floats) -> tuple[float, float]:
    """Return the rank correlation of scores and of absolute scores."""
    return rank_correlation(first, second), rank_correlation(np.abs(first), np.abs(second))


def rank_correlation(first: Floats, second: Floats) -> float:
    """Return Spearman's correlation, the mean over targets, shape (targets, elements); NaN cells are left out.

    Ties share their mean rank. 0 where only the second is constant; a target whose first scores are constant is left
    out.
    """
    found = []
    for a, b in zip(first, second, strict=True):
        seen = ~np.isnan(a) & ~np.isnan(b)
        if np.unique(a[seen]).size > 1:
            value = float(pearson(rankdata(a[seen]), rankdata(b[seen])))
            found.append(0.0 if np.isnan(value) else value)
    return float(np.mean(found)) if found else float("nan")


def cascade(model: TextModel) -> list[tuple[str, list[torch.nn.Module]]]:
    """Return the parts of a model from the head down to the embeddings, each a name and its modules with weights.

    The head is all that lies above the blocks; the embeddings are all that lies below them or beside them in the trunk.
    """
    network = model.model
    blocks = list(block_paths(model))
    trunk = network.base_model_prefix
    inside = {name: next((path for path in blocks if _within(name, path)), None) for name, _ in network.named_modules()}
    parts: dict[str, list[torch.nn.Module]] = {"head": [], **{path: [] for path in reversed(blocks)}, "embeddings": []}
    seen_block = False
    tied = {id(parameter) for parameter in model.embedding.parameters()}
    for name, module in network.named_modules():
        block = inside[name]
        seen_block = seen_block or block is not None
        own = list(module.parameters(recurse=False))
        if not own:
            continue
        if block is not None:
            parts[block].append(module)
        elif any(id(parameter) in tied for parameter in own) or (not seen_block and _within(name, trunk)):
            parts["embeddings"].append(module)
        else:
            parts["head"].append(module)
    return [(name, modules) for name, modules in parts.items() if modules]


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def reinitialise(model: TextModel, modules: Iterable[torch.nn.Module], seed: int) -> None:
    """Draw the weights of modules anew as the architecture draws them at first; global random numbers stay as they are.

    Where the architecture does not say how, a matrix gets normal numbers of its own standard deviation, and a vector is
    permuted.
    """
    devices = sorted({p.device.index for p in model.model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        for module in modules:
            before = {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}
            for parameter in module.parameters(recurse=False):
                # The mark of weights that were loaded, which transformers would leave as they are.
                parameter.__dict__.pop("_is_hf_initialized", None)
            module.__dict__.pop("_is_hf_initialized", None)
            model.model._init_weights(module)
            for name, parameter in module.named_parameters(recurse=False):
                if torch.equal(parameter, before[name]) and parameter.numel() > 1 and parameter.std() > 0:
                    _draw_like(parameter)


def _draw_like(parameter: torch.nn.Parameter) -> None:
    if parameter.dim() > 1:
        parameter.normal_(float(parameter.mean()), float(parameter.std()))
    else:
        parameter.copy_(parameter[torch.randperm(len(parameter), device=parameter.device)])


def _reason(item: Attribution) -> str | None:
    if len(item) == 0 or not item.targets:
        return "no elements"
    if (item.valid.sum(axis=1) < 2).all():
        return "a single element"
    return "constant scores" if np.isnan(rank_correlation(item.scores, item.scores)) else None


def _shuffled(row: Floats, rng: np.random.Generator) -> Floats:
    """Permute the numbers of a row among themselves; NaN stays where it is."""
    out = row.copy()
    seen: npt.NDArray[np.bool_] = ~np.isnan(row)
    out[seen] = rng.permutation(row[seen])
    return out
