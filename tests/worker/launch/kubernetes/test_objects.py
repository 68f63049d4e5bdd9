from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes_validate import ValidationError, validate

from service.contract import Device
from worker.launch.kubernetes.objects import ArmJob, headless_service, indexed_job, job_set, name_of
from worker.launch.kubernetes.options import ClusterOptions

VERSIONS = ["1.34", "1.36"]
OPTIONS = ClusterOptions(
    image="registry.example/worker:1", claim="arms", mount=Path("/arms"), conductor="worker-7d9f-x2"
)
GPU = replace(OPTIONS, device=Device.CUDA, conductor_uid="5f1c", queue="gpus", topology="rack")
ONE = ArmJob("arm-reference-0123456789ab", 1, 2, False, "worker-7d9f-x2/arm-reference-0123456789ab", False, "d1")
MANY = ArmJob("arm-candidate-0123456789ab", 3, 4, True, "worker-7d9f-x2/arm-candidate-0123456789ab", True, "d2")
ARMS = pytest.mark.parametrize(("arm", "options"), [(ONE, OPTIONS), (MANY, GPU)], ids=["one node", "three nodes"])


def as_job(document):
    """The Job that JobSet's controller makes: the schemas know no JobSet, but everything in its template."""
    (replicated,) = document["spec"]["replicatedJobs"]
    metadata = document["metadata"] | replicated["template"]["metadata"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": replicated["template"]["spec"]}


@pytest.mark.parametrize("version", VERSIONS)
@ARMS
def test_all_objects_fit_the_schemas(arm, options, version):
    for document in (as_job(job_set(arm, options)), indexed_job(arm, options), headless_service(arm, options, "u1")):
        validate(document, version, strict=True)
    broken = indexed_job(arm, options)
    broken["spec"]["backOffLimit"] = 0
    with pytest.raises(ValidationError):
        validate(broken, version, strict=True)


@ARMS
def test_a_job_set_has_the_fields_of_its_definition_and_restarts_nothing(arm, options):
    spec = job_set(arm, options)["spec"]
    assert set(spec) == {"ttlSecondsAfterFinished", "failurePolicy", "successPolicy", "network", "replicatedJobs"}
    assert spec["failurePolicy"] == {"maxRestarts": 0}
    assert spec["network"] == {"enableDNSHostnames": True, "subdomain": arm.name, "publishNotReadyAddresses": True}
    (replicated,) = spec["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (1, arm.nodes, arm.nodes)
    assert (job["backoffLimit"], job["activeDeadlineSeconds"]) == (0, options.deadline)


@pytest.mark.parametrize("build", [lambda a, o: as_job(job_set(a, o)), indexed_job], ids=["JobSet", "Job"])
@ARMS
def test_pods_are_restricted_and_have_no_token(arm, options, build):
    pod = build(arm, options)["spec"]["template"]["spec"]
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
    # Of the volume that all arms share a pod sees its own arm's folders, its source only to read.
    claimed = [mount for mount in container["volumeMounts"] if mount["name"] == "claim"]
    assert all(mount["subPath"].startswith(f"{arm.subpath}/") for mount in claimed)
    assert [mount.get("readOnly", False) for mount in claimed] == ([False, True] if arm.has_source else [False])


def test_gpus_queue_topology_and_owner_are_asked_for():
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
    assert "nvidia.com/gpu" not in indexed_job(ONE, OPTIONS)["spec"]["template"]["spec"]["containers"][0]["resources"]


@pytest.mark.parametrize(
    ("build", "head"),
    [
        (lambda a, o: as_job(job_set(a, o)), "arm-candidate-0123456789ab-node-0-0.arm-candidate-0123456789ab:29400"),
        (indexed_job, "arm-candidate-0123456789ab-0.arm-candidate-0123456789ab:29400"),
    ],
    ids=["JobSet", "Job"],
)
def test_nodes_meet_at_the_name_of_pod_0(build, head):
    arguments = build(MANY, GPU)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--head") + 1] == head
    assert len(head.partition(".")[0]) <= 63


def test_a_name_is_the_folder_s_and_nobody_else_s():
    folder = Path("/tmp/clipwatch-attempt-ab12/Some_role that is far longer than a host name may be")
    name = name_of("worker-1", folder)
    assert name == name_of("worker-1", folder)
    assert len({name, name_of("worker-2", folder), name_of("worker-1", folder.with_name("oracle"))}) == 3
    assert len(name) <= 40
    assert name.replace("-", "").isalnum()
    assert name == name.lower()
