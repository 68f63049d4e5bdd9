"""Runs an arm as pods of a cluster: one JobSet an arm, or an Indexed Job where JobSet is not installed.

`objects` builds what is created and `words` reads what the cluster says of it, both without a client; `cluster` is all
that speaks to the API server; `mirror` brings the arm's files from the shared volume to the conductor's folder.
"""

from worker.launch.kubernetes.launcher import KubernetesLauncher
from worker.launch.kubernetes.options import ClusterOptions

__all__ = ["ClusterOptions", "KubernetesLauncher"]
