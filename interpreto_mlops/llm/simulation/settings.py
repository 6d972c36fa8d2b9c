"""What a reader is shown before it predicts what a model says."""

from __future__ import annotations

from interpreto_mlops.registry import Choice


class Setting(Choice):
    """What the prompt holds besides the classes and the texts to classify.

    `L1`: nothing. `E1`: the global explanation. `L2`: examples with the model's predictions, which is the baseline to
    beat. `E2`: the global explanation and examples. `E3`: as E2, each example with its local explanation; its score is
    the explanation's. `U1`: as E3, and the texts to classify have theirs too: an upper bound, since these are computed
    for the prediction that is asked for.

    Source: Poché et al. 2025 (ConSim), the settings of the experiments.
    """

    L1 = "L1"
    E1 = "E1"
    L2 = "L2"
    E2 = "E2"
    E3 = "E3"
    U1 = "U1"

    @property
    def explains(self) -> bool:
        """Whether the global explanation is shown."""
        return self in (Setting.E1, Setting.E2, Setting.E3, Setting.U1)

    @property
    def learns(self) -> bool:
        """Whether examples with predictions are shown."""
        return self not in (Setting.L1, Setting.E1)

    @property
    def explains_examples(self) -> bool:
        """Whether each example is shown with its local explanation."""
        return self in (Setting.E3, Setting.U1)

    @property
    def leaks(self) -> bool:
        """Whether the texts to classify are shown with their local explanations."""
        return self is Setting.U1


SCORE, BASELINE = Setting.E3, Setting.L2
"""The setting whose score is the explanation's, and the one that it is compared with."""
