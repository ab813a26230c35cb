"""Tasks: what a network is trained and scored for."""

from nar_hw.tasks.base import Task, evaluating
from nar_hw.tasks.classification import ClassificationTask

__all__ = ["ClassificationTask", "Task", "evaluating"]
