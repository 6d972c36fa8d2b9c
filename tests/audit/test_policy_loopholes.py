"""What must not make a rule pass: evidence that hides, spoils or stands in for other evidence."""

from __future__ import annotations

import pytest

from tests.audit.explained import register
from tests.audit.test_policy_rules import one


@pytest.fixture
def version(store):
    return register(store)


THRESHOLD = {"rule": "threshold", "metric": "deletion", "max": 0.5}
MARGIN = {"rule": "margin", "metric": "deletion"}
CHAMPION = {"rule": "champion", "metric": "deletion", "by": 0.05}


class TestARunWithoutScores:
    """It comes in the place of no run that was scored."""

    @pytest.mark.parametrize("rule", [THRESHOLD, MARGIN])
    def test_hides_no_failing_metric(self, version, rule):
        failing = version.explain(metrics={"deletion": 0.9})
        version.explain(method="saliency", metrics={"deletion": 0.2})
        assert one(version.evidence(), rule).verdict == "failed"
        version.explain()
        found = one(version.evidence(), rule)
        assert (found.verdict, found.evidence) == ("failed", (f"runs:/{failing}",))

    def test_hides_nothing_from_the_champion(self, store):
        old, new = register(store), register(store, seed=1)
        old.explain(metrics={"deletion": 0.3})
        old.explain()
        new.explain(metrics={"deletion": 0.9})
        new.explain(method="saliency", metrics={"deletion": 0.2})
        old.explain(method="saliency", metrics={"deletion": 0.2})
        new.explain()
        assert one(new.evidence(), CHAMPION, old.evidence()).verdict == "failed"
