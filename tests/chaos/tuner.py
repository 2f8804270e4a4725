"""`jobs.tune` with a fault: `python -m tests.chaos.tuner faulty|forgetful|sound <arguments of jobs.tune>`.

faulty: trial 1 raises, the worker of trial 2 is killed as the kernel kills a process out of memory, and the worker of trial 3 allocates
more memory than the machine has.
forgetful: a control that must fail. Trials that were running when the driver died are not resumed.
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


FAULTS: dict[str, Callable[[], None]] = {"0002": _killed, "0003": _out_of_memory}


def _work(request: dict[str, Any], *, fault: Callable[[], None]) -> None:
    """The work of a worker in a trial with a fault."""
    fault()


def faulty_fit(data: Path, out: Path, *arguments: Any, **options: Any) -> Run:
    if out.name == "0001":
        raise RuntimeError("trial 1 raises")
    if out.name in FAULTS:
        trainer.work = functools.partial(_work, fault=FAULTS[out.name])  # each trial has its own process
    return trainer.fit(data, out, *arguments, **options)


if __name__ == "__main__":
    fault = sys.argv.pop(1)
    if fault == "forgetful":
        sweep.left_running = lambda study, config: []
    cli.run(Tune, functools.partial(main, fit=faulty_fit) if fault == "faulty" else main)
