"""What recipes have in common: which texts, where runs go, which model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from interpreto_mlops.errors import UnknownNameError
from interpreto_mlops.registry import check_options

Positive = Annotated[int, Field(ge=1)]
Names = Annotated[list[str], Field(min_length=1)]


class StoreRecipe(BaseModel):
    """Which part of which texts, and where runs go; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_column: str = "text"
    label_column: str | None = None
    split: str = "test"
    max_texts: Positive | None = None
    tracking_uri: str | None = None
    experiment: str | None = None
    catalogue_uri: str | None = None
    catalogue: bool = True
    hide_texts: bool = False


class ModelRecipe(StoreRecipe):
    """A model, its arithmetic, and parameters of methods by their names."""

    model: str
    data: str
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)

    def options_of(self, method: str) -> dict[str, Any]:
        """Return the parameters that the recipe gives one method."""
        return dict(self.options.get(method, {}))

    def _check_options(self, kinds: Mapping[str, Any], what: str = "method") -> None:
        for name, given in self.options.items():
            if name not in kinds:
                raise UnknownNameError(f"{what} in options", name, kinds)
            check_options(kinds[name], name, given)
