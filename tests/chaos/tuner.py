"""`jobs.tune` with a fault: `python -m tests.chaos.tuner faulty|forgetful|sound <arguments of jobs.tune>`.

faulty: trial 1 raises, the worker of trial 2 is killed as the kernel kills what takes too much memory, that of trial 3 asks for more memory
than there is.
forgetful: trials that a driver's death left running are not gone on with: the control that must fail where the real thing holds.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from han.train import trainer
from han.train.trainer import Run
from han.tune import sweep
from jobs import cli
from jobs.tune import Tune, main


def _killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _out_of_memory() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


DEEDS: dict[str, Callable[[], None]] = {"0002": _killed, "0003": _out_of_memory}


def _work(request: dict[str, Any], *, deed: Callable[[], None]) -> None:
    """What a worker runs once its trial is doomed."""
    deed()


def faulty_fit(data: Path, out: Path, *arguments: Any, **options: Any) -> Run:
    if out.name == "0001":
        raise RuntimeError("trial 1 raises")
    if out.name in DEEDS:
        trainer.work = functools.partial(_work, deed=DEEDS[out.name])  # in this trial's own process
    return trainer.fit(data, out, *arguments, **options)


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    if fault == "forgetful":
        sweep.left_running = lambda study, config: []
    cli.run(Tune, functools.partial(main, fit=faulty_fit) if fault == "faulty" else main)
