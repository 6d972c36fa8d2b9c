"""A model that is split at some of its layers, and what its texts' activations there are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from interpreto_mlops.concepts.activations import DTYPES, ActivationSet
from interpreto_mlops.concepts.harvest import Harvest, Plan
from interpreto_mlops.concepts.row_plans import (
    AGGREGATIONS,
    GRANULARITIES,
    TEXT_GRANULARITIES,
    RowPlan,
    plan_rows,
)
from interpreto_mlops.errors import InputError, UnknownNameError
from interpreto_mlops.models.budgets import DEFAULT_TOKEN_BUDGET
from interpreto_mlops.models.splitting import Splitter
from interpreto_mlops.text.datasets import TextDataset

__all__ = ["AGGREGATIONS", "GRANULARITIES", "ModelWithSplitPoints", "RowPlan", "plan_rows"]

_ACCELERATOR_TOKENS = 16384


class ModelWithSplitPoints(Splitter):
    """A model that is split at some of its layers, for concepts: see `Splitter` for its arguments.

    Example:
        split = ModelWithSplitPoints(model, split_points=[2, 4])
        activations = split.get_activations(texts)
        activations[4].tensor()
    """

    def get_activations(
        self,
        texts: Iterable[str] | TextDataset,
        *,
        granularity: str = "token",
        aggregation: str = "mean",
        directory: str | Path | None = None,
        resume: bool = True,
        dtype: str = "float32",
        token_budget: int | None = None,
        progress: bool | None = None,
    ) -> dict[int | str, ActivationSet]:
        """Run texts through the model once and write the activations of all split points to disk.

        Arguments:
            texts: the texts; a generator is read as it goes.
            granularity: what a row is. `token`: each token that is not special; `all_tokens`: special ones, too;
                `word`, `sentence`, `sample` (the text): its tokens that are not special, as one; `cls`: the first
                token, which says something about the text only where attention goes both ways. A split point with one
                vector for each text (`per_text`) has `sample` rows.
            aggregation: how several tokens become one row, number by number: `mean`, `max`, `min`, `sum`,
                `signed_max` (the value that is largest without its sign), `first` or `last`.
            directory: where to put a folder for each layer; None for a temporary one that lives as long as its set.
            resume: go on from where the same harvest was broken off in the directory, to the same bytes; if it was
                finished, the sets that are there are opened. False refuses a directory with activations in it.
            dtype: how numbers are stored: `float32`, or half of the space with `float16` or `bfloat16`.
            token_budget: the most tokens of a batch, padding included; by default 1024 on a CPU, where more is
                slower, and 16384 elsewhere.
            progress: show a bar; None shows it on a terminal only.

        Returns:
            A set for each split point, by what the split point was called on construction. Rows are in the order of the
            texts, whatever the batches were.

        Raises:
            InputError: an argument that cannot be used, or a directory with other activations in it.
            DataError: no text has a token.
            IntegrityError: what is in the directory is damaged.
            ModelOutputError: the model puts out NaN or infinity; the message names the text.
            OutOfMemoryError: a single text does not fit in memory.
        """
        if granularity not in GRANULARITIES:
            raise UnknownNameError("granularity", granularity, GRANULARITIES)
        if aggregation not in AGGREGATIONS:
            raise UnknownNameError("aggregation", aggregation, AGGREGATIONS)
        if dtype not in DTYPES:
            raise UnknownNameError("dtype", dtype, DTYPES)
        if self.per_text and granularity not in TEXT_GRANULARITIES:
            raise InputError(
                f"the layer {sorted(self.per_text)[0]!r} has one vector for each text, so rows are texts: granularity "
                f"'sample', not {granularity!r}"
            )
        if token_budget is None:
            token_budget = DEFAULT_TOKEN_BUDGET if self.model.device.type == "cpu" else _ACCELERATOR_TOKENS
        if token_budget < 1:
            raise InputError(f"the token budget must be at least 1, not {token_budget!r}")
        plan = Plan(granularity, aggregation, dtype, token_budget)
        folder = None if directory is None else Path(directory)
        with Harvest(self, plan, folder, resume=resume, progress=progress) as harvest:
            sets = harvest.run(texts)
        return {given: sets[path] for given, path in self.points.items()}
