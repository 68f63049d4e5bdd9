import json
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from kubernetes.client import Configuration

from service.contract import Arm, ArmSpec, Device, ErrorKind, Kernels, Mode
from service.settings import Settings
from tests.waiting import until
from tests.worker.launch.kubernetes.api_server import OBJECTS, ApiServer, Kubelet, container, refusal
from tests.worker.workloads import Recording, cpu_arm, run, tiny
from worker.launch.kubernetes import KubernetesLauncher
from worker.launch.kubernetes.cluster import Cluster, describe_cluster
from worker.launch.protocol import LOG, LaunchError
from worker.runner import Stopped
from worker.runner.follow import run_arm

RBAC = Path(__file__).parents[4] / "k8s/overlays/multi-node/rbac.yaml"
ARM = cpu_arm(Mode.FLASH)
SPEC = ArmSpec(workload=tiny(), arm=ARM)


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "claim").mkdir()
    return Settings(
        kubernetes_image="worker:1",
        kubernetes_mount=tmp_path / "claim",
        kubernetes_namespace="arms",
        kubernetes_ranks_per_node=1,
        kubernetes_pod_name="conductor",
    )


def changed(settings, **changes):
    return settings.model_copy(update={f"kubernetes_{name}": value for name, value in changes.items()})


@contextmanager
def cluster_of(settings, **how):
    server = ApiServer(**how)
    try:
        yield server, lambda o=settings: KubernetesLauncher(o, Cluster(o, Configuration(host=server.url)))
    finally:
        server.close()


@pytest.fixture(params=[True, False], ids=["JobSet", "Job"])
def job_sets(request):
    return request.param


def fails(**status):
    """A kubelet that starts no container and gives every pod that status."""

    def on_pods(_, pods):
        for pod in pods:
            server[0].set_pod(pod["metadata"]["name"], **status)

    server = []
    return on_pods, server


def outcome_with(settings, tmp_path, **status):
    on_pods, holder = fails(**status)
    with cluster_of(settings, on_pods=on_pods) as (server, launcher):
        holder.append(server)
        return run(tiny(), ARM, tmp_path / "candidate", launcher())


def test_an_arm_of_two_nodes_trains_to_its_end(settings, tmp_path):
    """The containers of both pods are run, as processes: real torchrun, real gloo, a rendezvous of two nodes."""
    kubelet = Kubelet(settings.kubernetes_mount)
    with cluster_of(settings, on_pods=kubelet) as (server, launcher):
        kubelet.server = server
        arm = launcher().resolve(cpu_arm(Mode.FLASH_FSDP, 2))
        try:
            remote = run(tiny(), arm, tmp_path / "candidate", launcher())
        finally:
            kubelet.end()
        assert remote.error is None, (tmp_path / "candidate" / LOG).read_text()
        assert len(kubelet.processes) == 2
        assert not server.objects["jobsets"]
    assert [step.step for step in remote.record.steps] == [1, 2, 3]
    assert remote.record.start.world_size == 2
    assert list(settings.kubernetes_mount.rglob("*")) == [settings.kubernetes_mount / settings.kubernetes_pod_name]


def test_creating_twice_is_harmless_and_another_arm_of_the_name_is_refused(settings, tmp_path, job_sets):
    with cluster_of(settings, job_sets=job_sets) as (server, launcher):
        arms = [launcher().start(SPEC, tmp_path / "reference") for _ in range(2)]
        assert len(server.objects["jobsets" if job_sets else "jobs"]) == 1
        assert server.count("POST", "/jobsets" if job_sets else "/jobs") == 2
        other = SPEC.model_copy(update={"num_steps": 1})
        with pytest.raises(LaunchError, match="another arm of the name"):
            launcher().start(other, tmp_path / "reference")
        for arm in arms:
            arm.stop()
        assert not server.objects["pods"]


def test_doctor_says_what_kind_of_objects_arms_are_or_why_it_cannot_know(settings, job_sets):
    with cluster_of(settings, job_sets=job_sets) as (server, _):
        cluster = Cluster(settings, Configuration(host=server.url))
        kind = "JobSets" if job_sets else "Indexed Jobs, because JobSet is not installed"
        assert describe_cluster(settings, cluster) == f"namespace arms: 0 conductors, arms are {kind}"
        server.refusals = [refusal(403, "Forbidden", "pods is forbidden")]
        with pytest.raises(LaunchError, match="the cluster cannot be asked: 403: pods is forbidden"):
            describe_cluster(settings, cluster)


def test_without_job_set_several_nodes_get_a_service(settings, tmp_path):
    with cluster_of(settings, job_sets=False) as (server, launcher):
        spec = ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH_FSDP, 2))
        arm = launcher().start(spec, tmp_path / "candidate")
        (job,), (service,) = server.objects["jobs"].values(), server.objects["services"].values()
        assert service["metadata"]["ownerReferences"][0]["uid"] == job["metadata"]["uid"]
        assert service["spec"]["clusterIP"] == "None"
        assert job["spec"]["template"]["spec"]["subdomain"] == service["metadata"]["name"]
        arm.stop()


def test_a_watch_continues_and_lists_again_when_its_version_has_expired(settings, tmp_path):
    with cluster_of(settings) as (server, launcher):
        arm = launcher().start(SPEC, tmp_path / "reference")
        (name,) = server.objects["pods"]
        until(lambda: server.count("GET", "watch="))
        server.set_pod(name, phase="Running")
        until(lambda: server.count("GET", "watch=") >= 3)
        assert server.lists("pods") == 1
        server.forget()
        terminated = {"exitCode": 0, "reason": "Completed"}
        server.set_pod(name, phase="Succeeded", containerStatuses=[container(terminated=terminated)])
        assert until(lambda: arm.poll() is not None)
        assert arm.poll() == 0
        assert server.lists("pods") == 2
        arm.stop()


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (
            {
                "phase": "Failed",
                "containerStatuses": [container(terminated={"exitCode": 137, "reason": "OOMKilled"})],
            },
            ErrorKind.OUT_OF_MEMORY,
            "ran out of memory",
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}, ErrorKind.LIMIT, "evicted: low on disk"),
        (
            {
                "phase": "Pending",
                "containerStatuses": [container(waiting={"reason": "ImagePullBackOff", "message": "Back-off"})],
            },
            ErrorKind.DEVICE,
            "cannot pull the image worker:1",
        ),
        (
            {
                "phase": "Pending",
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
                ],
            },
            ErrorKind.DEVICE,
            "cannot be scheduled: 0/3 nodes",
        ),
    ],
    ids=["memory", "evicted", "image", "unschedulable"],
)
def test_a_pod_s_failure_is_the_arm_s_error_and_in_its_log(settings, tmp_path, status, kind, words):
    outcome = outcome_with(changed(settings, start_seconds=0.5), tmp_path, **status)
    assert outcome.error.kind is kind
    assert words in outcome.error.message
    assert words in (tmp_path / "candidate" / LOG).read_text()


def test_cancelling_deletes_the_arm_with_its_pods_first(settings, tmp_path):
    stop = threading.Event()
    with cluster_of(settings, on_pods=lambda *_: stop.set()) as (server, launcher):
        with pytest.raises(Stopped):
            run_arm("candidate", SPEC, tmp_path / "c", launcher=launcher(), observer=Recording(), stop=stop)
        assert server.count("DELETE", "propagationPolicy=Foreground") >= 1
        assert not server.objects["jobsets"]
        assert not server.objects["pods"]


def test_a_refusal_is_the_error_and_a_passing_failure_is_tried_again(settings, tmp_path):
    with cluster_of(settings) as (server, launcher):
        server.refusals = [refusal(503, "ServiceUnavailable", "apiserver is shutting down")]
        launcher().start(SPEC, tmp_path / "reference").stop()
        forbidden = 'jobsets.jobset.x-k8s.io is forbidden: User "system:serviceaccount:arms:worker" cannot create'
        server.refusals = [refusal(403, "Forbidden", forbidden)]
        with pytest.raises(LaunchError, match=r"403: jobsets\.jobset\.x-k8s\.io is forbidden"):
            launcher().start(SPEC, tmp_path / "candidate")
    assert not list(settings.kubernetes_mount.rglob("spec.json"))


def test_an_arm_in_the_queue_of_kueue_may_wait_longer_than_start_seconds(settings, tmp_path):
    queued = changed(settings, queue="gpus", start_seconds=0.1)
    with cluster_of(queued) as (server, launcher):
        arm = launcher().start(SPEC, tmp_path / "reference")
        until(lambda: "waits in the queue" in (tmp_path / "reference" / LOG).read_text())
        until(lambda: server.count("GET", "watch=") >= 3)
        assert arm.poll() is None
        arm.stop()


def test_a_new_conductor_removes_arms_and_folders_of_earlier_ones(settings, tmp_path):
    mine = changed(settings, pod_name="worker-a", pod_uid="1")
    for name in ("worker-a", "worker-b", "worker-gone"):
        (settings.kubernetes_mount / name / "arm-x").mkdir(parents=True)
    with cluster_of(mine) as (server, launcher):
        for name in ("worker-a", "worker-b"):
            labels = {"app.kubernetes.io/name": "worker", "clipwatch.dev/arm": ""}
            server.add("pods", {"metadata": {"name": name, "labels": labels}, "status": {"phase": "Running"}})
        for arm, conductor in (("arm-mine", "worker-a"), ("arm-other", "worker-b")):
            labels = {"clipwatch.dev/conductor": conductor, "clipwatch.dev/arm": arm}
            server.add("jobsets", {"metadata": {"name": arm, "labels": labels}, "spec": {}})
        launcher(mine)
        assert list(server.objects["jobsets"]) == ["arm-other"]
        assert [folder.name for folder in settings.kubernetes_mount.iterdir()] == ["worker-b"]


def test_an_arm_cannot_make_the_conductor_read_files_of_others(settings, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a password")
    source, kept_as_links = tmp_path / "source", []
    (source / "opacus").mkdir(parents=True)
    (source / "opacus" / "link.py").symlink_to(secret)

    def plant(_, pods):
        (out,) = settings.kubernetes_mount.glob("*/*/out")
        kept_as_links.append((out.parent / "source/opacus/link.py").is_symlink())
        (out / "record.jsonl").symlink_to(secret)
        (out / "log-0.txt").write_text("hello\n")

    with cluster_of(settings, on_pods=plant) as (_, launcher):
        arm = launcher().start(SPEC, tmp_path / "reference", source)
        arm.poll()
        arm.stop()
    assert kept_as_links == [True]
    files = {path.name: path.read_text() for path in (tmp_path / "reference").iterdir()}
    assert files[LOG] == "hello\n"
    assert "a password" not in json.dumps(files)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (Arm(mode=Mode.FLASH, device=Device.CUDA), "kubernetes_device"),
        (Arm(mode=Mode.FLASH, kernels=Kernels.TRITON), "kernels triton need a GPU"),
        (Arm(mode=Mode.FLASH_FSDP, world_size=65_536), "kubernetes_max_nodes"),
    ],
    ids=["GPU", "triton", "too many nodes"],
)
def test_an_arm_that_the_cluster_cannot_run_is_refused_before_it_is_created(settings, arm, words):
    with cluster_of(settings) as (_, launcher), pytest.raises(LaunchError, match=words):
        launcher().resolve(arm)


@pytest.mark.parametrize(("asked", "nodes", "gpus"), [(1, 2, "3"), (3, 3, "2")], ids=["fewest", "as asked for"])
def test_ranks_are_spread_evenly_over_the_fewest_nodes(settings, tmp_path, asked, nodes, gpus):
    with cluster_of(settings) as (server, launcher):
        wide = changed(settings, ranks_per_node=4, device="cuda")
        arm = launcher(wide).resolve(Arm(mode=Mode.FLASH_FSDP, world_size=6, nodes=asked))
        assert (arm.device, arm.kernels) == (Device.CUDA, Kernels.TRITON)
        launcher(wide).start(ArmSpec(workload=tiny(), arm=arm), tmp_path / "candidate").stop()
        pods = [p for _, kind, p in server.history if kind == "ADDED"]
        assert len(pods) == nodes
        assert {p["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] for p in pods} == {gpus}


def test_the_role_of_workers_allows_exactly_the_requests_that_are_sent(settings, tmp_path):
    asked = set()
    for job_sets in (True, False):
        with cluster_of(changed(settings, pod_uid="1"), job_sets=job_sets) as (server, launcher):
            for plural in ("jobsets", "jobs"):
                labels = {"clipwatch.dev/conductor": settings.kubernetes_pod_name, "clipwatch.dev/arm": "left"}
                server.add(plural, {"metadata": {"name": "left", "labels": labels}, "spec": {}})
            spec = ArmSpec(workload=tiny(), arm=cpu_arm(Mode.FLASH_FSDP, 2))
            arm = launcher(changed(settings, pod_uid="1")).start(spec, tmp_path / f"candidate-{job_sets}")
            until(lambda: server.count("GET", "watch="))
            arm.stop()
            asked |= set(filter(None, (permission(*request) for request in server.requests)))
    (role,) = [d for d in yaml.safe_load_all(RBAC.read_text()) if d["kind"] == "Role"]
    allowed = {(rule["apiGroups"][0], rule["resources"][0], verb) for rule in role["rules"] for verb in rule["verbs"]}
    assert asked == allowed


def permission(method, url):
    """The permission that a request needs: group, resource, verb. Discovery needs none."""
    found = OBJECTS.match(url.partition("?")[0])
    if not found:
        return None
    verb = {"POST": "create", "DELETE": "delete"}.get(method, "get" if found["name"] else "list")
    group = found["group"].rpartition("/")[0]
    return group, found["plural"], "watch" if "watch=" in url else verb
