"""Models: loading, tokenising, the engine that runs them, and splitting at a layer."""

from interpreto_mlops.models.environment import check_torchvision

check_torchvision()
