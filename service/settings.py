"""The settings. Each has a default and is overridden by a variable, `CLIPWATCH_` and its name in capitals."""

import ipaddress
import os
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

from limits import parse
from pydantic import Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

DEFAULT_RATE = "600/minute"


class Settings(BaseSettings):
    """The settings of one process. By the defaults the service keeps all its data in `data_dir`."""

    model_config = SettingsConfigDict(env_prefix="CLIPWATCH_", env_ignore_empty=True, frozen=True)

    data_dir: Path = Field(Path(".clipwatch"), description="Folder of the embedded database, broker and artifacts")
    database_url: str = Field("", description="SQLAlchemy URL; default SQLite in data_dir")
    broker_url: str = Field("", description="Celery broker, such as redis://host/0; default folders in data_dir")
    artifacts_url: str = Field("", description="fsspec URL of a folder; default a folder in data_dir")
    cache: str = Field(
        "", description="Folder for a mirror of Opacus' repository and its checked-out sources; default in data_dir"
    )
    opacus_remote: str = Field(
        "https://github.com/meta-pytorch/opacus", description="URL or path of the repository that commits come from"
    )
    allow_opacus_paths: bool = Field(
        False,
        description="Whether an arm submitted over the API may name a folder of the worker, `path:<folder>`",
    )
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65_535)

    lease_seconds: float = Field(
        30, gt=0, description="A worker without a heartbeat for this long loses its comparison"
    )
    heartbeat_seconds: float = Field(1, gt=0, description="How often a worker renews its lease and checks for a cancel")
    sweep_seconds: float = Field(
        5, gt=0, description="How often the sweeper looks for expired attempts and lost notifications"
    )
    ring_seconds: float = Field(
        30, gt=0, description="Notify workers again about a comparison that has been queued for this long"
    )
    arm_seconds: float = Field(4 * 3600, gt=0, description="An arm that takes longer is ended: error")
    stall_seconds: float = Field(1800, gt=0, description="An arm without a step for this long is ended: error")
    comparison_seconds: float = Field(12 * 3600, gt=0, description="An attempt that takes longer is ended: error")
    max_attempts: int = Field(3, ge=1, description="Attempts that may be lost before the verdict is error")
    worker_concurrency: int = Field(1, ge=1, description="Comparisons that one worker conducts at a time")
    cpu_slots: int = Field(
        0,
        ge=0,
        description="Ranks that a worker trains on its CPU at a time, each with its share of the cores; 0: four for "
        "each comparison that it conducts at a time, but no more than it has cores",
    )
    max_log_chars: int = Field(
        1_000_000,
        ge=1_000,
        description="Characters of log that are kept per attempt: half from its start, half from its end",
    )
    max_body_bytes: int = Field(1_000_000, ge=1_000, description="Largest request body")

    public_url: str = Field("", description="Address of this service for browsers; links and images in reports need it")
    rules: Path | None = Field(
        None, description="TOML file: which commits are checked with which suites, and who may approve a pull request"
    )
    github_api: str = Field("https://api.github.com", description="GitHub's REST API, or that of an Enterprise server")
    github_secret: Path | None = Field(
        None, description="File with the secrets of the webhook, one a line; a delivery may be signed with any of them"
    )
    github_token: Path | None = Field(
        None, description="File with a token that may set commit statuses and write comments"
    )
    github_app_id: str = Field(
        "", description="Id of a GitHub App, which may create check runs; if set, it is used in place of a token"
    )
    github_app_key: Path | None = Field(None, description="File with the App's private key, PEM")
    notify_url: str = Field(
        "", description="URL that gets a signed POST when entries begin to fail, are fixed or disappear"
    )
    notify_secret: Path | None = Field(None, description="File with the secret that notifications are signed with")
    slack_url: str = Field("", description="Slack-compatible incoming webhook that gets a message at the same events")
    keep_seconds: float = Field(2, gt=0, description="How often the reconciler handles deliveries, checks and reports")
    watch_seconds: float = Field(60, gt=0, description="How often `clipwatch watch` polls the repository")
    source_days: float = Field(30, ge=1, description="Sources of Opacus that no arm has used for this long are deleted")

    auth: Literal["auto", "off", "required"] = Field(
        "auto", description="Whether tokens are required; auto: unless `host` is a loopback address"
    )
    public_read: bool = Field(
        False, description="Whether everyone may read without a token; submitting and cancelling still require one"
    )
    session_hours: float = Field(12, gt=0, description="How long a login to the dashboard lasts")
    rate_limit: str = Field(
        "",
        description="Requests per token or address; default 600/minute where tokens are required",
    )
    rate_limit_url: str = Field("", description="Redis in which several API processes count requests together")

    launcher: Literal["local", "fleet", "container", "kubernetes"] = Field(
        "local",
        description="Where arms run. local: under torchrun on the worker's host; fleet: on several hosts, each with a "
        "worker that has this setting; container: each in a container; kubernetes: as pods of a cluster",
    )
    container_image: str = Field(
        "clipwatch-worker:cuda",
        description="Image of the arms' containers, of the same release as the worker; may be pinned by a digest",
    )
    container_engine: str = Field(
        "", description="URL of the Docker or Podman engine; default DOCKER_HOST or the usual socket"
    )

    isolation: Literal["auto", "required", "off"] = Field(
        "auto",
        description="Whether arms are confined to their own files and devices; auto: as far as the system supports it",
    )
    arm_memory_gib: float = Field(0, ge=0, description="Memory that all ranks of an arm together may use; 0: no limit")
    arm_disk_gib: float = Field(20, gt=0, description="Disk space that an arm may use")
    arm_processes: int = Field(256, ge=8, description="Processes that an arm may run")

    host_name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$",
        description="Name of this host in the fleet; default its host name",
    )
    host_address: str = Field("", description="Address of this host for the other hosts; default that of host_nic")
    host_nic: str = Field("", description="Network interface for NCCL and gloo; default the one with host_address")
    fleet_ports: str = Field("29400-29499", description="Ports of the head for the rendezvous of an arm's hosts")
    fleet_join_seconds: float = Field(
        120, gt=0, description="A host that has not begun its part of an arm after this long is lost"
    )
    fleet_collective_seconds: float = Field(
        600, gt=0, description="How long ranks on several hosts wait for each other in a collective"
    )
    fleet_wait_seconds: float = Field(
        3600, gt=0, description="A comparison that needs more hosts than there are for this long is ended: error"
    )

    kubernetes_namespace: str = Field("clipwatch", description="Namespace of the arms")
    kubernetes_image: str = Field("clipwatch-worker:latest", description="Image of the arms: the worker's image")
    kubernetes_claim: str = Field("arms", description="Volume claim of the folder that arms and workers share")
    kubernetes_mount: Path = Field(Path("/arms"), description="Where the worker has this claim mounted")
    kubernetes_device: Literal["cpu", "cuda"] = Field("cpu", description="Device of arms that do not request cpu")
    kubernetes_ranks_per_node: int = Field(8, ge=1, description="Most ranks in a pod; with cuda each has a GPU")
    kubernetes_max_nodes: int = Field(16, ge=1, description="Most pods of an arm")
    kubernetes_cpus: int = Field(1, ge=1, description="CPUs that each rank requests")
    kubernetes_memory_gib: float = Field(4, gt=0, description="Memory that each rank may use")
    kubernetes_interface: str = Field("eth0", description="Network interface of pods, for NCCL and gloo between nodes")
    kubernetes_queue: str = Field("", description="Local queue of Kueue for the arms; default none")
    kubernetes_topology: str = Field(
        "",
        description="Node label, such as that of a rack: all pods of an arm run on nodes with the same value, and no "
        "other arm gets that value; JobSet only; default none",
    )
    kubernetes_start_seconds: float = Field(
        600, gt=0, description="An arm whose pods have not started after this long is ended: error"
    )
    kubernetes_pod_name: str = Field("", description="Name of the worker's own pod; default its host name")
    kubernetes_pod_uid: str = Field("", description="Uid of this pod, so that arms end with it; by default they do not")

    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str = Field(
        "", description="Where traces are sent, such as http://collector:4318; by default there are none"
    )

    @model_validator(mode="after")
    def _lease_outlives_heartbeat(self) -> "Settings":
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("lease_seconds must be at least twice heartbeat_seconds")
        return self

    @field_validator("rate_limit")
    @classmethod
    def _rate_is_one(cls, rate: str) -> str:
        if rate:
            parse(rate)
        return rate

    @field_validator("fleet_ports")
    @classmethod
    def _ports_are_a_range(cls, ports: str) -> str:
        first, _, last = ports.partition("-")
        if not (first.isdecimal() and last.isdecimal() and 1024 <= int(first) <= int(last) <= 65_535):
            raise ValueError("must be a range of ports from 1024 on, such as 29400-29499")
        return ports

    @property
    def meeting_ports(self) -> range:
        """`fleet_ports` as numbers."""
        first, _, last = self.fleet_ports.partition("-")
        return range(int(first), int(last) + 1)

    @property
    def folder(self) -> Path:
        """`data_dir` as an absolute path, which child processes can share."""
        return self.data_dir.expanduser().absolute()

    @property
    def database(self) -> str:
        """The database URL, with the default filled in. `postgresql://` means psycopg 3."""
        url = self.database_url or f"sqlite:///{self.folder / 'clipwatch.db'}"
        for short in ("postgres://", "postgresql://"):
            if url.startswith(short):
                return "postgresql+psycopg://" + url.removeprefix(short)
        return url

    @property
    def artifacts(self) -> str:
        """The URL of the artifact folder, with the default filled in."""
        return (self.artifacts_url or str(self.folder / "artifacts")).rstrip("/")

    @property
    def cache_folder(self) -> Path:
        """The cache as an absolute path, with the default filled in."""
        return Path(self.cache).expanduser().absolute() if self.cache else self.folder / "cache"

    @property
    def subscriptions(self) -> dict[str, str]:
        """The URLs that are notified of changed verdicts, by kind of report; those that are not set are left out."""
        return {kind: url for kind, url in {"webhook": self.notify_url, "slack": self.slack_url}.items() if url}

    @property
    def speaks_to_github(self) -> bool:
        """Whether there is a credential for GitHub's API."""
        return bool(self.github_app_id or self.github_token)

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @cached_property
    def auth_required(self) -> bool:
        """Whether requests need a token."""
        return self.auth == "required" or (self.auth == "auto" and not self.on_loopback)

    @property
    def effective_rate_limit(self) -> str:
        """The rate limit with the default filled in; empty for none."""
        return self.rate_limit or (DEFAULT_RATE if self.auth_required else "")

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that give a child process the settings of this one."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        values = given | {"data_dir": self.folder}
        return dict(os.environ) | {f"CLIPWATCH_{name.upper()}": str(value) for name, value in values.items()}


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read from the environment once."""
    return Settings()
