"""Proxy data: what images are like, how near the gradients of mini-batches are to the full one, and subsets to search on."""

from nar_hw.proxy.metrics import METRICS, Sample, measure
from nar_hw.proxy.select import METHODS, select
from nar_hw.proxy.study import Study, study
from nar_hw.proxy.subset import ProxyIndex, subset

__all__ = ["METHODS", "METRICS", "ProxyIndex", "Sample", "Study", "measure", "select", "study", "subset"]
