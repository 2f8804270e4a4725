"""The options of the service, each with its unit: `serve run serve.app:build name=value`, or `args` in serve/config.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Arguments of `serve.app:build`. Unknown names and values out of range are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(default="imdb", description="folder of a run or of an artifact, models/best, or imdb, the shipped model")
    api_keys_file: str | None = Field(default=None, description="file with one API key a line, read again when it changes")
    insecure: bool = Field(default=False, description="listen beyond this machine without an API key")
    deadline_s: float = Field(
        default=5.0, gt=0, le=30, description="maximum seconds from a request's arrival to its answer; after that, 504"
    )
    retries: int = Field(default=2, ge=0, le=5, description="maximum number of retries and hedged calls of a request")
    max_body_bytes: int = Field(default=2 * 2**20, ge=1024, description="maximum size of a request's body in bytes; above it, 413")
    max_texts: int = Field(default=32, ge=1, description="maximum number of texts in a request; above it, 413")
    max_waiting_tokens: int = Field(
        default=60_000, ge=1, description="maximum tokens that an ingress has accepted and not yet answered; above it, 429"
    )
    batch_tokens: int = Field(default=8_192, ge=1, description="maximum tokens in a batch, unless a single text has more")
    num_replicas: int = Field(default=1, ge=1, description="processes that score; a config file can set autoscaling instead")
    num_ingress: int = Field(default=1, ge=1, description="processes that accept HTTP requests")
    cpus: float = Field(default=1.0, gt=0, description="CPUs, and torch threads, of a process that scores")
    gpu: bool = Field(default=False, description="one GPU for each process that scores")
