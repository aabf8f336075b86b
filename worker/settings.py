"""Every knob, in one tree. Environment variables have the prefix POINTSMAN_; unknown ones are refused."""

from __future__ import annotations

import difflib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from worker.classifier.formats import FORMATS
from worker.errors import SettingsError

PREFIX = "POINTSMAN_"


class Settings(BaseSettings):
    """All settings of a worker, with their defaults."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True, env_ignore_empty=True)

    redis_url: Annotated[
        SecretStr,
        Field(
            description="Redis, such as redis://user:password@host:6379/0; rediss:// for TLS; "
            "redis+sentinel://host:26379,host:26379/master; redis+cluster://host:6379,host:6379"
        ),
    ] = SecretStr("redis://127.0.0.1:6379")
    redis_timeout_s: Annotated[float, Field(gt=0, description="Longest wait for a connection or an answer")] = 5.0
    model: Annotated[Path, Field(description="The Pointsman GGUF")] = Path("models/household.gguf")
    model_sha256: Annotated[str | None, Field(pattern="^[0-9a-fA-F]{64}$", description="Refuse the model unless it has this hash")] = None
    model_poll_s: Annotated[float, Field(ge=0, description="How often to look whether the model file was replaced; 0 for never")] = 1.0
    format: Annotated[
        str,
        Field(
            description="Weight format: `tuned` is what `python -m worker tune` found best here, else the file as it is; `auto` "
            "measures at the first start; `original` is the file as it is; or a format such as Q8_0"
        ),
    ] = "tuned"
    cache_dir: Annotated[Path, Field(description="Where other weight formats and what `tune` found are kept")] = Path("~/.cache/pointsman")
    namespace: Annotated[str, Field(min_length=1, description="Prefix of all streams; {braced} in Redis Cluster")] = "pointsman"
    group: Annotated[str, Field(min_length=1, description="Consumer group that all workers share")] = "routers"
    consumer: Annotated[str, Field(min_length=1, description="Name of this worker in the group; unique")] = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
    )
    batch_size: Annotated[int, Field(ge=1, le=256, description="Most queries classified at a time")] = 64
    batch_tokens: Annotated[
        int, Field(ge=1, description="Most tokens classified at a time, by estimate: keeps a batch of long queries short")
    ] = 2048
    max_in_flight: Annotated[int | None, Field(ge=1, description="Most entries read and not yet delivered; four batches if unset")] = None
    max_text_bytes: Annotated[int, Field(ge=1, description="Longer texts go to the dead stream")] = 65_536
    max_query_tokens: Annotated[int, Field(ge=8, le=1024, description="Longer queries lose their middle and are flagged")] = 256
    threads: Annotated[int | None, Field(ge=1, description="CPU threads of llama.cpp; all cores this process may use if unset")] = None
    n_gpu_layers: Annotated[int, Field(ge=-1, description="Layers on the GPU, -1 for all; ignored by a CPU build")] = -1
    retention: Annotated[Literal["keep", "delete"], Field(description="Whether routed entries stay in the stream of queries")] = "keep"
    max_topic_length: Annotated[
        int | None, Field(ge=1, description="A topic or review stream with so many entries gets no more until its readers delete some")
    ] = None
    deduplicate_by: Annotated[
        str | None,
        Field(min_length=1, description="Field (in an envelope: header) that names a message; one sent twice is published once"),
    ] = None
    deduplicate_for_s: Annotated[float, Field(gt=0, le=604_800, description="For how long after its publication")] = 3600.0
    claim_after_s: Annotated[float, Field(gt=0, description="An entry idle for so long is taken over from its worker")] = 60.0
    claim_every_s: Annotated[float, Field(gt=0, description="How often to look for such entries")] = 5.0
    batch_timeout_s: Annotated[
        float,
        Field(
            gt=0,
            description="The longest that one batch may take; then the model counts as stuck and others claim its entries",
        ),
    ] = 10.0
    max_deliveries: Annotated[int, Field(ge=1, description="An entry delivered more often is poison and goes to the dead stream")] = 5
    drain_timeout_s: Annotated[float, Field(gt=0, description="At SIGTERM, how long to finish what is in flight")] = 20.0
    http_host: Annotated[str, Field(description="Address of /metrics, /healthz, /readyz, /asyncapi")] = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535, description="Port of the same; 0 picks a free one")] = 8080
    tracing: Annotated[
        bool, Field(description="Send OpenTelemetry spans to the collector of OTEL_EXPORTER_OTLP_ENDPOINT; needs the extra `tracing`")
    ] = False
    log_level: Annotated[Literal["debug", "info", "warning", "error"], Field(description="Least severity logged")] = "info"
    log_format: Annotated[Literal["auto", "json", "console"], Field(description="auto: console on a terminal, else json")] = "auto"
    embedded_redis: Annotated[Path | None, Field(description="Start a Redis of one's own that keeps its data in this directory")] = None

    @property
    def in_flight_limit(self) -> int:
        """Most entries read and not yet delivered."""
        return 4 * self.batch_size if self.max_in_flight is None else self.max_in_flight

    @field_validator("format")
    @classmethod
    def _format_is_known(cls, value: str) -> str:
        known = ("tuned", "auto", "original", *FORMATS)
        if value not in known:
            raise ValueError(f"{value!r} is not one of {', '.join(known)}")
        return value

    @field_validator("cache_dir")
    @classmethod
    def _home_is_expanded(cls, value: Path) -> Path:
        try:
            return value.expanduser()
        except RuntimeError as error:
            raise ValueError(f"{value} has no home directory to lie in: give a full path") from error

    @field_validator("namespace")
    @classmethod
    def _namespace_is_printable(cls, value: str) -> str:
        if any(char.isspace() or not char.isprintable() for char in value):
            raise ValueError("must not hold white space or control characters")
        return value

    @model_validator(mode="after")
    def _claiming_spares_the_busy(self) -> Self:
        if self.claim_after_s < 2 * self.batch_timeout_s:
            raise ValueError(
                f"claim_after_s ({self.claim_after_s:g}) is shorter than twice batch_timeout_s ({self.batch_timeout_s:g}): others would "
                "claim what a healthy worker is still at. Raise claim_after_s, or lower batch_timeout_s"
            )
        return self


def load_settings(environment: Mapping[str, str] = os.environ, **overrides: Any) -> Settings:
    """Settings from the environment and, before it, the command line; None among `overrides` means not given.

    Raises:
        SettingsError: lists every unknown, malformed or contradictory setting.
    """
    known = [name.upper() for name in Settings.model_fields]
    problems = []
    for variable in environment:
        name = variable.upper().removeprefix(PREFIX)
        if variable.upper().startswith(PREFIX) and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {PREFIX}{close[0]}?" if close else "; `pointsman doctor` lists all"
            problems.append(f"{variable} is not a setting{hint}")
    try:
        settings = Settings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            where = PREFIX + str(problem["loc"][0]).upper() + ": " if problem["loc"] else ""
            problems.append(where + problem["msg"].removeprefix("Value error, "))
    if problems:
        raise SettingsError("bad settings:\n" + "\n".join(f"  {problem}" for problem in problems))
    return settings
