"""A logged dictionary that a job goes on with: itself, the model that it was learned from, and activations of texts."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

from interpreto_mlops.concepts import ActivationSet, ConceptDictionary, ModelWithSplitPoints
from interpreto_mlops.concepts.belonging import place_of
from interpreto_mlops.errors import InputError, ModelLoadError, TextWarning
from interpreto_mlops.models.text_model import TextModel
from interpreto_mlops.text.datasets import TextDataset, load_dataset
from interpreto_mlops.tracking.dictionary_flavor import load_dictionary
from interpreto_mlops.tracking.loading import load_model
from interpreto_mlops.tracking.resolving import ResolvedModel, resolve
from interpreto_mlops.tracking.store import Store
from interpreto_mlops.workflows.recipe_base import StoreRecipe


@dataclass(frozen=True)
class Studied:
    """A dictionary with what it is of.

    Arguments:
        found: where it is, pinned.
        dictionary: itself.
        model: that it was learned from.
        split: the model, split at the dictionary's layer.
    """

    found: ResolvedModel
    dictionary: ConceptDictionary
    model: TextModel
    split: ModelWithSplitPoints

    @property
    def layer(self) -> str:
        """The path of its layer."""
        return str(self.dictionary.provenance["layer"])

    def activations(self, texts: TextDataset, *, progress: bool | None = None) -> ActivationSet:
        """Return the rows of texts as the dictionary was fitted on them."""
        said = self.dictionary.provenance
        with warnings.catch_warnings():
            # What is cut or empty was said when the dictionary was learned; here it is a matter of the data alone.
            warnings.simplefilter("ignore", TextWarning)
            (found,) = self.split.get_activations(
                texts,
                granularity=said.get("granularity", "token"),
                aggregation=said.get("aggregation") or "mean",
                progress=progress,
            ).values()
        return found


def texts_of(recipe: StoreRecipe, data: str) -> TextDataset:
    """Return the texts that a recipe names.

    Raises:
        DataError: a file or data set that cannot be read.
    """
    found = load_dataset(data, text_column=recipe.text_column, label_column=recipe.label_column, split=recipe.split)
    return found.head(recipe.max_texts)


def studied(store: Store, uri: str, *, base_model: str | None = None, **options: Any) -> Studied:
    """Load a dictionary of a store and the model that it was learned from.

    Arguments:
        store: where it is.
        uri: of the dictionary: `models:/name@alias`, `models:/name/1`, `models:/m-…` or `runs:/<run id>/<name>`.
        base_model: where the model is, if it is no longer where the dictionary was told.
        options: of `load_model`.

    Raises:
        InputError: a dictionary that does not say of which model and layer it is.
        ModelLoadError: no such dictionary, or its model is gone.
        IntegrityError: a file was changed, or the model is another one than it was learned from.
        TrackingError: the store does not answer.
    """
    found = resolve(store, uri)
    dictionary = load_dictionary(found.uri, store=store)
    said = dictionary.provenance
    source = base_model or (said.get("model") or {}).get("uri")
    if source is None or not said.get("layer"):
        raise InputError(f"the dictionary {uri!r} does not say which model and layer it was learned from")
    try:
        model = load_model(str(source), store=store, **options)
    except ModelLoadError as error:
        if base_model is not None:
            raise
        raise ModelLoadError(
            f"the model that the dictionary {uri!r} was learned from cannot be loaded: {error}; say where it is by "
            "base_model"
        ) from error
    split = ModelWithSplitPoints(model, split_points=[str(said["layer"])])
    place_of(split, dictionary)
    return Studied(found, dictionary, model, split)
