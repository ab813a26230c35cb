"""Tasks: what a network is trained and scored for."""

from nar_hw.tasks.base import Task, evaluating
from nar_hw.tasks.classification import ClassificationTask
from nar_hw.tasks.faces import FacesTask

__all__ = ["ClassificationTask", "FacesTask", "Task", "evaluating"]
