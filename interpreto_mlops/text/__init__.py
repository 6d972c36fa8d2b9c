"""Texts before any model sees them: elements by character offsets, data sets."""

from interpreto_mlops.registry import discover

# A data set that is known by name registers itself in a file of this folder.
discover("interpreto_mlops.text")
