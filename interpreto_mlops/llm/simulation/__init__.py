"""Simulatability: how well a reader says what a model says, with and without its explanation."""

from interpreto_mlops.llm.simulation.protocol import Simulation
from interpreto_mlops.llm.simulation.results import Chance, Cost, Gain, SettingResult, SimulationResult, Trial
from interpreto_mlops.llm.simulation.settings import Setting
from interpreto_mlops.llm.simulation.study import (
    Contributions,
    Explanation,
    Feature,
    FeatureKind,
    Sample,
    Study,
)

__all__ = [
    "Chance",
    "Contributions",
    "Cost",
    "Explanation",
    "Feature",
    "FeatureKind",
    "Gain",
    "Sample",
    "Setting",
    "SettingResult",
    "Simulation",
    "SimulationResult",
    "Study",
    "Trial",
]
