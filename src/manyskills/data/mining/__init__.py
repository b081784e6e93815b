"""Training data mined from the Python code on the machine: `mine_python`."""

from manyskills.data.mining.limits import MiningLimits, MiningReport, SplitCount
from manyskills.data.mining.mine import mine_python

__all__ = ["MiningLimits", "MiningReport", "SplitCount", "mine_python"]
