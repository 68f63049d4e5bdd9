from pathlib import Path

import pytest
from kubernetes_validate import ValidationError, validate

from service.settings import Settings
from worker.launch.kubernetes.objects import ArmJob, arm_name, headless_service, indexed_job, job_set

VERSIONS = ["1.34", "1.36"]
PLAIN = {"kubernetes_image": "registry.example/worker:1", "kubernetes_pod_name": "worker-7d9f-x2"}
CPU = Settings(**PLAIN)
GPU = Settings(
    **PLAIN, kubernetes_device="cuda", kubernetes_pod_uid="5f1c", kubernetes_queue="gpus", kubernetes_topology="rack"
)
ONE = ArmJob("arm-reference-0123456789ab", 1, 2, False, "worker-7d9f-x2/arm-reference-0123456789ab", False, "d1")
MANY = ArmJob("arm-candidate-0123456789ab", 3, 4, True, "worker-7d9f-x2/arm-candidate-0123456789ab", True, "d2")
ARMS = pytest.mark.parametrize(("arm", "settings"), [(ONE, CPU), (MANY, GPU)], ids=["one node", "three nodes"])


def as_job(document):
    """The Job that JobSet would create. The schemas describe Jobs but no JobSets."""
    (replicated,) = document["spec"]["replicatedJobs"]
    metadata = document["metadata"] | replicated["template"]["metadata"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": replicated["template"]["spec"]}


@pytest.mark.parametrize("version", VERSIONS)
@ARMS
def test_all_objects_fit_the_schemas(arm, settings, version):
    for document in (as_job(job_set(arm, settings)), indexed_job(arm, settings), headless_service(arm, settings, "u1")):
        validate(document, version, strict=True)
    broken = indexed_job(arm, settings)
    broken["spec"]["backOffLimit"] = 0
    with pytest.raises(ValidationError):
        validate(broken, version, strict=True)


@ARMS
def test_a_job_set_has_the_fields_of_its_definition_and_restarts_nothing(arm, settings):
    spec = job_set(arm, settings)["spec"]
    assert set(spec) == {"ttlSecondsAfterFinished", "failurePolicy", "successPolicy", "network", "replicatedJobs"}
    assert spec["failurePolicy"] == {"maxRestarts": 0}
    assert spec["network"] == {"enableDNSHostnames": True, "subdomain": arm.name, "publishNotReadyAddresses": True}
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (1, arm.nodes, arm.nodes)
    assert (job["backoffLimit"], job["activeDeadlineSeconds"]) == (0, 4 * 3600 + 900)


@pytest.mark.parametrize("build", [lambda a, o: as_job(job_set(a, o)), indexed_job], ids=["JobSet", "Job"])
@ARMS
def test_pods_are_restricted_and_have_no_token(arm, settings, build):
    pod = build(arm, settings)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any("CLIPWATCH" in each["name"] for each in container["env"])
    # A pod sees its own arm's folders of the shared volume, and can only read the source.
    claimed = [mount for mount in container["volumeMounts"] if mount["name"] == "claim"]
    assert all(mount["subPath"].startswith(f"{arm.subpath}/") for mount in claimed)
    assert [mount.get("readOnly", False) for mount in claimed] == ([False, True] if arm.has_source else [False])


def test_gpus_queue_topology_and_owner_are_in_the_documents():
    document = job_set(MANY, GPU)
    assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert document["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"] == "rack"
    assert document["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Pod", "name": "worker-7d9f-x2", "uid": "5f1c"}
    ]
    pod = as_job(document)["spec"]["template"]["spec"]
    resources = pod["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "4"
    assert pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert "nvidia.com/gpu" not in indexed_job(ONE, CPU)["spec"]["template"]["spec"]["containers"][0]["resources"]


@pytest.mark.parametrize(
    ("build", "master"),
    [
        (lambda a, o: as_job(job_set(a, o)), "arm-candidate-0123456789ab-node-0-0.arm-candidate-0123456789ab:29400"),
        (indexed_job, "arm-candidate-0123456789ab-0.arm-candidate-0123456789ab:29400"),
    ],
    ids=["JobSet", "Job"],
)
def test_nodes_meet_at_the_name_of_pod_0(build, master):
    arguments = build(MANY, GPU)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--master") + 1] == master
    assert len(master.partition(".")[0]) <= 63


def test_each_folder_has_a_name_of_its_own():
    folder = Path("/tmp/clipwatch-attempt-ab12/Some_role that is far longer than a host name may be")
    name = arm_name("worker-1", folder)
    assert name == arm_name("worker-1", folder)
    assert len({name, arm_name("worker-2", folder), arm_name("worker-1", folder.with_name("oracle"))}) == 3
    assert len(name) <= 40
    assert name.replace("-", "").isalnum()
    assert name == name.lower()
