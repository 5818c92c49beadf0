"""The files that a run writes, and what it shows while it runs.

Importing the package imports nothing heavy; matplotlib, W&B and TensorBoard are imported
where they are used.
"""

from agent_r1.monitor.metrics import rollout_metrics
from agent_r1.monitor.plot import plot_curve
from agent_r1.monitor.records import load_trajectories
from agent_r1.monitor.run import RunFolder, load_metrics

__all__ = ["RunFolder", "load_metrics", "load_trajectories", "plot_curve", "rollout_metrics"]
