"""Tasks: what a network is trained and scored for."""

from nar_hw.tasks.base import Task, evaluating
from nar_hw.tasks.classification import ClassificationTask
from nar_hw.tasks.own import DatasetTask

__all__ = ["ClassificationTask", "DatasetTask", "Task", "evaluating"]
