"""Runs an arm as pods of a Kubernetes cluster: a JobSet for each arm, or an Indexed Job if JobSet is not installed.

`objects` builds the documents of an arm and `pod_status` explains the status documents of the cluster, both without a
client. `cluster` sends every request to the API server. `shared_folder` copies the arm's files from the shared volume
into the conductor's folder. `entrypoint` is the program of a pod.
"""

from worker.launch.kubernetes.launcher import KubernetesLauncher

__all__ = ["KubernetesLauncher"]
