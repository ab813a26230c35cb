"""Tests that every operator, reward, runtime, strategy and task must pass, one's own included; they need pytest.

    from nar_hw.testing import StrategyConformance

    class TestMine(StrategyConformance):
        @pytest.fixture
        def strategy(self):
            return MyStrategy

`FakeRuntime` is a runtime whose latencies are known exactly, for tests of whatever is built on measurements.
"""

import pytest

pytest.register_assert_rewrite(*(f"{__name__}.{name}" for name in ("operators", "rewards", "runtimes", "strategies", "tasks")))

from nar_hw.runtimes.fake import FakeDevice, FakeRuntime
from nar_hw.testing.operators import OperatorConformance
from nar_hw.testing.rewards import RewardConformance
from nar_hw.testing.runtimes import RuntimeConformance
from nar_hw.testing.strategies import StrategyConformance
from nar_hw.testing.tasks import TaskConformance

__all__ = [
    "FakeDevice",
    "FakeRuntime",
    "OperatorConformance",
    "RewardConformance",
    "RuntimeConformance",
    "StrategyConformance",
    "TaskConformance",
]
