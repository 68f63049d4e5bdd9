"""How statuses of pods and jobs, in the shapes of Kubernetes' documentation, are explained."""

import pytest

from service.contract import ErrorKind
from worker.launch.kubernetes.pod_status import end_of, has_failed, waiting_for

LIMITS = {"limits": {"memory": str(10 * 2**30)}}
OWNER = {"spec": {}, "status": {}}


def pod(index=0, **status):
    return {
        "metadata": {"name": f"arm-0-{index}", "annotations": {"batch.kubernetes.io/job-completion-index": str(index)}},
        "spec": {"containers": [{"resources": LIMITS}]},
        "status": status,
    }


def ended(index, code, reason="Error", **more):
    state = {"terminated": {"exitCode": code, "reason": reason}}
    return pod(
        index, phase="Failed" if code else "Succeeded", containerStatuses=[{"name": "arm", "state": state}], **more
    )


def waiting(reason, message, image="nowhere.example/worker:1"):
    state = {"waiting": {"reason": reason, "message": message}}
    return pod(phase="Pending", containerStatuses=[{"name": "arm", "image": image, "state": state}])


def condition(kind, reason, message, status="True"):
    return [{"type": kind, "status": status, "reason": reason, "message": message}]


RUNNING = pod(1, phase="Running")
EVICTED = pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
DEADLINE = pod(phase="Failed", reason="DeadlineExceeded", message="Pod was active on the node longer than the deadline")
DRAINED = ended(0, 143, conditions=condition("DisruptionTarget", "EvictionByEvictionAPI", "Eviction API: evicting"))
PREEMPTED = pod(phase="Running", conditions=condition("DisruptionTarget", "PreemptionByScheduler", "preempting"))


@pytest.mark.parametrize(
    ("pods", "kind", "words"),
    [
        ([ended(0, 137, "OOMKilled"), RUNNING], ErrorKind.OUT_OF_MEMORY, ["node 0", "10.0 GiB", "memory"]),
        ([EVICTED, RUNNING], ErrorKind.LIMIT, ["node 0 was evicted", "low on resource: memory"]),
        ([DEADLINE, RUNNING], ErrorKind.TIME_LIMIT, ["deadline"]),
        ([DRAINED, RUNNING], ErrorKind.DEVICE, ["taken away", "drained"]),
        ([PREEMPTED, RUNNING], ErrorKind.DEVICE, ["taken away", "priority"]),
    ],
    ids=["out of memory", "evicted", "deadline", "drained", "preempted"],
)
def test_the_reason_why_the_cluster_ended_a_pod_is_explained(pods, kind, words):
    end = end_of(OWNER, pods, 2)
    assert end.status == 1
    assert end.error.kind is kind
    assert all(word in end.error.message for word in words)


def test_a_node_that_failed_because_of_another_does_not_hide_the_cause():
    victim = ended(1, 1)
    assert has_failed([RUNNING, victim])
    assert end_of(OWNER, [pod(0, phase="Running"), victim], 2) is None
    assert end_of(OWNER, [ended(0, 137, "OOMKilled"), victim], 2).error.kind is ErrorKind.OUT_OF_MEMORY
    # If an arm failed by itself, its ranks have described the error.
    settled = end_of(OWNER, [pod(0, phase="Running"), victim], 2, settled=True)
    assert (settled.status, settled.error) == (1, None)


def test_an_arm_that_ran_and_is_queued_again_has_ended():
    suspended = {"spec": {"suspend": True}}
    assert end_of(suspended, [], 2) is None
    assert "queued it again" in end_of(suspended, [], 2, ran=True).error.message


def test_success_needs_every_node():
    assert end_of(OWNER, [ended(0, 0, "Completed"), RUNNING], 2) is None
    assert end_of(OWNER, [ended(0, 0, "Completed"), ended(1, 0, "Completed")], 2).status == 0


@pytest.mark.parametrize(
    ("owner", "status", "kind"),
    [
        ({"status": {"conditions": condition("Completed", "AllJobsCompleted", "jobset completed")}}, 0, None),
        ({"status": {"conditions": condition("Complete", "CompletionsReached", "")}}, 0, None),
        (
            {"status": {"conditions": condition("Failed", "DeadlineExceeded", "Job was active longer than specified")}},
            1,
            ErrorKind.TIME_LIMIT,
        ),
        (
            {
                "status": {
                    "conditions": condition("Failed", "FailedJobs", "jobset failed due to one or more job failures")
                }
            },
            1,
            ErrorKind.CRASH,
        ),
        (None, 1, ErrorKind.CRASH),
    ],
    ids=["JobSet done", "Job done", "deadline", "JobSet failed", "deleted"],
)
def test_the_owner_explains_the_end_if_no_pod_is_left(owner, status, kind):
    end = end_of(owner, [], 2)
    assert end.status == status
    assert (end.error.kind if end.error else None) is kind


UNSCHEDULABLE = pod(
    phase="Pending",
    conditions=condition(
        "PodScheduled", "Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "False"
    ),
)


@pytest.mark.parametrize(
    ("pods", "event", "words", "permanent"),
    [
        ([UNSCHEDULABLE], None, "3 Insufficient nvidia.com/gpu", False),
        (
            [waiting("ImagePullBackOff", "Back-off pulling image")],
            None,
            "cannot pull the image nowhere.example/worker:1",
            False,
        ),
        ([waiting("InvalidImageName", "could not parse")], None, "InvalidImageName", True),
        ([waiting("ContainerCreating", None)], "FailedMount: timed out", "FailedMount: timed out", False),
        ([], "FailedCreate: exceeded quota: gpus", "0 of 1 pods were created: FailedCreate: exceeded quota", False),
    ],
    ids=["unschedulable", "image", "name of image", "volume", "quota"],
)
def test_the_reason_why_an_arm_waits_is_explained(pods, event, words, permanent):
    found = waiting_for(OWNER, pods, 1, event)
    assert words in found.reason
    assert found.permanent is permanent
    assert not found.queued


def test_an_arm_may_wait_in_a_queue_and_one_that_runs_does_not_wait():
    assert waiting_for({"spec": {"suspend": True}}, [], 1, None).queued
    assert waiting_for(OWNER, [RUNNING], 1, None) is None
