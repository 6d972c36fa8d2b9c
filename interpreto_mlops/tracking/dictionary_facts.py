"""What the flavor says about a dictionary: its entry in `MLmodel`, and the tags by which it is found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from interpreto_mlops.concepts.base import ConceptDictionary
from interpreto_mlops.text.hiding import texts_are_hidden
from interpreto_mlops.tracking import schema
from interpreto_mlops.tracking.addresses import redact

FORMAT_VERSION = 1
FAMILY = "family_module"

_REVISION = re.compile(r"(?:^models:/[^/@:]+/(?P<version>\d+)|@(?P<commit>[0-9a-f]{40}))$")


def keepable(dictionary: ConceptDictionary) -> ConceptDictionary:
    """Return what may be kept of a dictionary: all, or no words of its data where texts are hidden."""
    return dictionary.hidden() if texts_are_hidden() else dictionary


def flavor_facts(dictionary: ConceptDictionary) -> dict[str, Any]:
    """Return the flavor's entry in `MLmodel`: what the dictionary is of, and how it was made.

    The base model is a reference, never a copy: `base_model` is its pinned address, `base_model_revision` the version
    or commit that this names, `base_model_sha256` the content hash that decides whether a model is the one.

    Raises:
        NotFittedError: the dictionary is not fitted.
    """
    said = dictionary.provenance
    model: Mapping[str, Any] = said.get("model") or {}
    uri = None if model.get("uri") is None else redact(str(model["uri"]))
    found = _REVISION.search(uri or "")
    module = type(dictionary).__module__
    facts = {
        "format_version": FORMAT_VERSION,
        "method": dictionary.name,
        "n_concepts": dictionary.n_concepts,
        "width": dictionary.width,
        "base_model": uri,
        "base_model_name": model.get("name"),
        "base_model_id": model.get("model_id"),
        "base_model_revision": None if found is None else found["version"] or found["commit"],
        "base_model_sha256": model.get("fingerprint"),
        "layer": said.get("layer"),
        "granularity": said.get("granularity"),
        "aggregation": said.get("aggregation"),
        "data_name": (said.get("data") or {}).get("name"),
        "data_digest": (said.get("data") or {}).get("digest"),
        "normalisation": normalisation(dictionary),
    }
    return facts if module.startswith("interpreto_mlops.") else {**facts, FAMILY: module}


def normalisation(dictionary: ConceptDictionary) -> dict[str, float] | None:
    """Return by what rows are centred (`mean_norm`) and divided (`scale`) before they are encoded, where that is so."""
    weights = dictionary.weights
    if "mean" not in weights or "scale" not in weights:
        return None
    return {"mean_norm": float(weights["mean"].norm()), "scale": float(weights["scale"])}


def dictionary_tags(dictionary: ConceptDictionary) -> dict[str, str]:
    """Return the tags by which logged and registered dictionaries are searched."""
    facts = flavor_facts(dictionary)
    named = {
        schema.TAG_KIND: schema.DICTIONARY_KIND,
        schema.TAG_METHOD: facts["method"],
        schema.TAG_LAYER: facts["layer"],
        schema.TAG_MODEL_URI: facts["base_model"],
        schema.TAG_MODEL_ID: facts["base_model_id"],
        schema.TAG_MODEL_FINGERPRINT: facts["base_model_sha256"],
        schema.TAG_DATA: facts["data_digest"],
    }
    return {key: str(value) for key, value in named.items() if value is not None}
