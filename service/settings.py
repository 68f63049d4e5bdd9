"""Settings: defaults that run embedded in a folder, every one of them overridden by a `CLIPWATCH_` variable."""

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
    """One value for each process. With none given, everything lives in `data_dir`."""

    model_config = SettingsConfigDict(env_prefix="CLIPWATCH_", env_ignore_empty=True, frozen=True)

    data_dir: Path = Field(Path(".clipwatch"), description="Folder of the embedded database, broker and artifacts")
    database_url: str = Field("", description="SQLAlchemy URL; default SQLite in data_dir")
    broker_url: str = Field("", description="Celery broker, such as redis://host/0; default folders in data_dir")
    artifacts_url: str = Field("", description="fsspec URL of a folder; default a folder in data_dir")
    cache: str = Field("", description="Folder of the mirror and the sources of Opacus; default in data_dir")
    opacus_remote: str = Field(
        "https://github.com/meta-pytorch/opacus", description="URL or path of the repository that commits come from"
    )
    allow_opacus_paths: bool = Field(
        False, description="Let clients of the API have workers run an Opacus from any folder, `path:<folder>`"
    )
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65_535)

    lease_seconds: float = Field(30, gt=0, description="A worker silent for this long loses its comparison")
    heartbeat_seconds: float = Field(1, gt=0, description="How often a worker renews its lease and looks for a cancel")
    sweep_seconds: float = Field(5, gt=0, description="How often the sweeper looks for what was lost")
    ring_seconds: float = Field(30, gt=0, description="Ring again for a comparison queued for this long")
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
        1_000_000, ge=1_000, description="Characters of log kept per attempt, half of it its end"
    )
    max_body_bytes: int = Field(1_000_000, ge=1_000, description="Largest request body")

    public_url: str = Field("", description="Where browsers reach this service; links and pictures in reports need it")
    rules: Path | None = Field(None, description="TOML file: which commits are checked with what, and who may run code")
    github_api: str = Field("https://api.github.com", description="GitHub's REST API, or that of an Enterprise server")
    github_secret: Path | None = Field(None, description="File with the webhook's secret; one a line, any is accepted")
    github_token: Path | None = Field(None, description="File with a token that may set statuses and comment")
    github_app_id: str = Field("", description="Id of a GitHub App, which may make check runs; goes before a token")
    github_app_key: Path | None = Field(None, description="File with the App's private key, PEM")
    notify_url: str = Field("", description="Is POSTed to, signed, when entries begin to fail, are fixed or go")
    notify_secret: Path | None = Field(None, description="File with the secret that notifications are signed with")
    slack_url: str = Field("", description="Slack-compatible incoming webhook for the same")
    keep_seconds: float = Field(2, gt=0, description="How often deliveries, checks and reports are looked after")
    watch_seconds: float = Field(60, gt=0, description="How often `clipwatch watch` looks at the repository")
    source_days: float = Field(30, ge=1, description="Sources of Opacus that no arm asked for in so long are removed")

    auth: Literal["auto", "off", "required"] = Field(
        "auto", description="Whether a token is asked for; auto: unless `host` is a loopback address"
    )
    public_read: bool = Field(False, description="Let everybody look at comparisons, and only those with a token act")
    session_hours: float = Field(12, gt=0, description="How long a login to the dashboard lasts")
    rate_limit: str = Field(
        "",
        description="Requests per token or address; default 600/minute where a token is asked for",
    )
    rate_limit_url: str = Field("", description="Redis in which several API processes count requests together")

    launcher: Literal["local", "fleet", "container", "kubernetes"] = Field(
        "local",
        description="Where arms run: under torchrun on the worker's host; on it and on others whose workers say fleet "
        "too; in a container each; as pods of a cluster",
    )
    container_image: str = Field(
        "clipwatch-worker:cuda", description="Image of the arms' containers, of the worker's release; a digest pins it"
    )
    container_engine: str = Field("", description="URL of the engine; default DOCKER_HOST or the usual socket")

    isolation: Literal["auto", "required", "off"] = Field(
        "auto", description="Whether arms are kept from what is not theirs; auto: as far as the worker's system can"
    )
    arm_memory_gib: float = Field(
        0, ge=0, description="Memory that an arm may use, all its ranks together; 0: no limit"
    )
    arm_disk_gib: float = Field(20, gt=0, description="What an arm may write to the disk")
    arm_processes: int = Field(256, ge=8, description="Processes that an arm may run")

    host_name: str = Field(
        "",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,62})?$",
        description="This host's name in the fleet; default its own",
    )
    host_address: str = Field("", description="Address where the other hosts reach this one; default that of host_nic")
    host_nic: str = Field(
        "", description="Interface that arms speak over, NCCL and gloo; default the one with the address"
    )
    fleet_ports: str = Field("29400-29499", description="Ports of the head where the hosts of an arm meet")
    fleet_join_seconds: float = Field(120, gt=0, description="A host that has not begun for so long is lost")
    fleet_collective_seconds: float = Field(600, gt=0, description="Ranks on several hosts wait so long for each other")
    fleet_wait_seconds: float = Field(
        3600, gt=0, description="A comparison that needs more hosts than there are for so long is ended: error"
    )

    kubernetes_namespace: str = Field("clipwatch", description="Namespace of arms")
    kubernetes_image: str = Field("clipwatch-worker:latest", description="Image of arms: the worker's")
    kubernetes_claim: str = Field("arms", description="Volume claim through which arms and workers exchange files")
    kubernetes_mount: Path = Field(Path("/arms"), description="Where workers have that claim mounted")
    kubernetes_device: Literal["cpu", "cuda"] = Field("cpu", description="What arms train on unless they ask for cpu")
    kubernetes_ranks_per_node: int = Field(8, ge=1, description="Most ranks of a pod; each has a GPU with cuda")
    kubernetes_max_nodes: int = Field(16, ge=1, description="Most pods of an arm")
    kubernetes_cpus: int = Field(1, ge=1, description="CPUs that each rank asks for")
    kubernetes_memory_gib: float = Field(4, gt=0, description="Memory that each rank may use")
    kubernetes_interface: str = Field("eth0", description="Network interface of pods, for NCCL and gloo between nodes")
    kubernetes_queue: str = Field("", description="Kueue's local queue for arms; default none")
    kubernetes_topology: str = Field(
        "", description="Node label whose value an arm has to itself, such as a rack; JobSet only; default none"
    )
    kubernetes_start_seconds: float = Field(600, gt=0, description="An arm whose pods do not start for so long: error")
    kubernetes_pod_name: str = Field("", description="The worker's own pod; default its host name")
    kubernetes_pod_uid: str = Field("", description="That pod's uid, so that arms end with it; default they do not")

    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str = Field("", description="Where traces are sent, such as http://collector:4318; default nowhere")

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
            raise ValueError("a range of ports such as 29400-29499, from 1024 on")
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
    def speaks_to_github(self) -> bool:
        """Whether there is a credential to report with."""
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
        """The variables that give a child process the settings that this one has."""
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        values = given | {"data_dir": self.folder}
        return dict(os.environ) | {f"CLIPWATCH_{name.upper()}": str(value) for name, value in values.items()}


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read from the environment once."""
    return Settings()
