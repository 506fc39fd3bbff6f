"""Everything that can be configured, from environment variables `TIGHTFIT_...`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20


class Settings(BaseSettings):
    """Settings of one service and its workers; both read the same variables.

    Sizes are in bytes, times in seconds. Without `database_url` everything lives in SQLite under `data_dir`.
    """

    model_config = SettingsConfigDict(env_prefix="TIGHTFIT_", extra="ignore")

    data_dir: Path = Path("~/.local/share/tightfit")
    database_url: str = ""
    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535)

    max_upload_bytes: int = Field(default=2048 * MIB, ge=1)
    max_json_bytes: int = Field(default=MIB, ge=1)
    disk_floor_bytes: int = Field(default=1024 * MIB, ge=0)
    max_trials: int = Field(default=10_000, ge=1)
    max_running: int | None = Field(default=None, ge=1)  #: slices of searches at a time, over all workers
    max_layers: int = Field(default=2_000, ge=1)

    idempotency_s: float = Field(default=86_400.0, gt=0)
    idempotency_wait_s: float = Field(default=10.0, gt=0)  # for the first request under the same key
    key_pepper: SecretStr = SecretStr("")  #: keys are stored as HMACs under it; who loses it loses the keys
    session_s: float = Field(default=7 * 86_400.0, gt=0)
    event_poll_s: float = Field(default=0.5, gt=0)
    event_ping_s: float = Field(default=15.0, gt=0)
    event_stream_s: float = Field(default=600.0, gt=0)
    event_write_s: float = Field(default=30.0, gt=0)  # a client that reads nothing for so long is left
    requests_per_s: float = Field(default=100.0, ge=0)  # of a key, to each process of the service; 0: any number
    request_burst: int = Field(default=500, ge=1)  # at once
    notices_s: float = Field(default=30 * 86_400.0, ge=0)  # events of owners are kept; 0: for ever
    audit_s: float = Field(default=365 * 86_400.0, ge=0)  # the audit log is kept; 0: for ever
    streams_per_key: int = Field(default=8, ge=1)
    streams: int = Field(default=64, ge=1)
    max_stored_bytes: int = Field(default=0, ge=0)  # an owner's uploads and artefacts; 0: no quota
    max_live_searches: int = Field(default=1_000, ge=1)  # of an owner
    child_memory_bytes: int = Field(default=8192 * MIB, ge=512 * MIB)
    trial_s: float = Field(default=600.0, gt=0)
    slice_s: float = Field(default=300.0, gt=0)
    worker_silence_s: float = Field(default=30.0, gt=0)
    allowed_hosts: str = ""  # names that the Host header may have, comma-separated; none: any
    upload_bytes_per_s: int = Field(default=8192, ge=0)  # slower bodies are refused
    upload_keep_s: float = Field(default=86_400.0, gt=0)  # resumable uploads that were not finished are dropped
    upload_window_s: float = Field(default=30.0, gt=0)
    otel: bool = False  #: OpenTelemetry's exporters, as the OTEL_... variables set them up
    log_format: Literal["console", "json"] = "console"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    failed_logins_per_minute: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _fill(self) -> Self:
        object.__setattr__(self, "data_dir", self.data_dir.expanduser().absolute())
        if not self.database_url:
            object.__setattr__(self, "database_url", f"sqlite:///{self.data_dir / 'app.db'}")
        return self

    @property
    def is_sqlite(self) -> bool:
        """Tell whether the database is SQLite (one host) and not PostgreSQL."""
        return self.database_url.startswith("sqlite")

    @property
    def hosts(self) -> frozenset[str]:
        """Names that requests may be addressed to; none: any."""
        return frozenset(name.strip().lower() for name in self.allowed_hosts.split(",") if name.strip())

    @property
    def key_file(self) -> Path:
        """Where the first administrator's key is left for local clients."""
        return self.data_dir / "api_key"

    @property
    def secret_file(self) -> Path:
        """Where the secret that signs sessions and cursors is kept."""
        return self.data_dir / "secret"

    @property
    def blob_dir(self) -> Path:
        """Where uploads and artefacts are kept, by their SHA-256."""
        return self.data_dir / "blobs"
