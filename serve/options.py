"""What an operator may set, each with its unit: `serve run serve.app:build name=value`, or `args` in serve/config.yaml."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Options(BaseModel):
    """Arguments of `serve.app:build`. A name that is not here is refused, and so is a value out of range."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(default="imdb", description="the folder of a run or of an artifact, models/best, or imdb, the shipped model")
    api_keys_file: str | None = Field(default=None, description="a file with one API key a line, read again when it changes")
    insecure: bool = Field(default=False, description="listen beyond this machine without an API key")
    deadline_s: float = Field(default=5.0, gt=0, le=30, description="seconds from a request's arrival to its answer, a 504 at the latest")
    retries: int = Field(default=2, ge=0, le=5, description="times a request is sent again after its replica died")
    max_body_bytes: int = Field(default=2 * 2**20, ge=1024, description="largest body of a request; beyond it 413")
    max_texts: int = Field(default=32, ge=1, description="most texts in a request; beyond it 413")
    max_waiting_tokens: int = Field(
        default=60_000, ge=1, description="tokens an ingress replica has taken on and not answered; once above, further requests get 429"
    )
    batch_tokens: int = Field(default=8_192, ge=1, description="tokens scored together at most, unless a single text has more")
    num_replicas: int = Field(default=1, ge=1, description="processes that score; the deployments section of a config file has autoscaling")
    num_ingress: int = Field(default=1, ge=1, description="processes that speak HTTP")
    cpus: float = Field(default=1.0, gt=0, description="CPUs, and torch threads, of a process that scores")
    gpu: bool = Field(default=False, description="one GPU for each process that scores")
