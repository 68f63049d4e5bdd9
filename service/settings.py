"""Settings: defaults that run embedded in a folder, every one of them overridden by a `CLIPWATCH_` variable."""

import os
from functools import lru_cache
from pathlib import Path

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """One value for each process. With none given, everything lives in `data_dir`."""

    model_config = SettingsConfigDict(env_prefix="CLIPWATCH_", frozen=True)

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
    max_log_chars: int = Field(
        1_000_000, ge=1_000, description="Characters of log kept per attempt, half of it its end"
    )
    max_body_bytes: int = Field(1_000_000, ge=1_000, description="Largest request body")

    @model_validator(mode="after")
    def _lease_outlives_heartbeat(self) -> "Settings":
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            raise ValueError("lease_seconds must be at least twice heartbeat_seconds")
        return self

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
    def environment(self) -> dict[str, str]:
        """The variables that give a child process the settings that this one has."""
        values = self.model_dump() | {"data_dir": self.folder}
        return dict(os.environ) | {f"CLIPWATCH_{name.upper()}": str(value) for name, value in values.items()}


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read from the environment once."""
    return Settings()
