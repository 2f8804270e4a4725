"""`jobs.score` with a fault: `python -m tests.chaos.driver none|poison|uncommitted LOG [--failpoint NAME] <arguments of jobs.score>`.

poison: a record that holds a word of `DEEDS` does that to the process that scores it, and writes a line to LOG before.
--failpoint: kill a process by SIGKILL at that point (see `Failpoint`).
uncommitted: finished parts become visible at once and without a record: the control that must fail where the real thing holds.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from han.score import batch_job, publish
from han.score.publish import Claim, Part, Record
from han.score.scorer import Scored
from han.score.worker import BatchScorer, Task, local_scorer
from han.types import EffectDetail
from jobs import cli
from jobs.score import Score, main


def _hang() -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # for ages, and it never lets another thread of Python run


def _out_of_memory() -> None:
    raise MemoryError


DEEDS: dict[str, Callable[[], object]] = {
    "POISONEXIT": functools.partial(os._exit, 1),
    "POISONSEGV": lambda: ctypes.string_at(0),  # a fault of this very thread; a signal would reach another one, a few records later
    "POISONHANG": _hang,
    "POISONMEMORY": _out_of_memory,
}


class Poisoned:
    """A scorer that some words end."""

    def __init__(self, task: Task, *, log: str, deeds: dict[str, Callable[[], object]]) -> None:
        self._scorer, self._log, self._deeds = local_scorer(task), log, deeds
        self.labels, self.fingerprint = self._scorer.labels, self._scorer.fingerprint

    def score_flat(self, texts: Sequence[str], *, effects: EffectDetail = "none") -> Scored:
        for text in texts:
            for word, deed in self._deeds.items():
                if word in text:
                    with open(self._log, "a") as log:
                        log.write(text.replace("\n", " ") + "\n")
                    deed()
        return self._scorer.score_flat(texts, effects=effects)


class Uncommitted(Part):
    """A part that everybody sees as soon as it is written, under a name of this attempt."""

    def close(self) -> tuple[Record, None]:
        record, _ = super().close()
        out = Path(self._staging.place).parent
        (out / "scores").mkdir(exist_ok=True)
        for file in record["files"]:
            shutil.copy(out / ".staging" / "parts" / file["staged"], out / "scores" / f"{file['staged']}.parquet")
        (out / ".staging" / "records" / f"{record['part']}.json").unlink()
        return record, None


def _without_commit() -> None:
    """In the driver too: nothing is remembered, nothing is renamed."""
    begin = batch_job.begin_part

    def begin_uncommitted(*arguments: Any, **options: Any) -> Part:
        part = begin(*arguments, **options)
        part.__class__ = Uncommitted
        return part

    def publish_uncommitted(claim: Claim, records: Sequence[Record], about: dict[str, Any]) -> dict[str, Any]:
        counts = publish.total(records)
        run = {"finished": "", **about}
        manifest = {"job": claim.job, "run": run, "counts": counts, "reasons": publish.reasons(records), "parts": []}
        claim.out.write(publish.MANIFEST, publish._json(manifest), durable=False)
        claim.out.write(publish.SUCCESS, b"{}", durable=False)
        return manifest

    batch_job.begin_part = begin_uncommitted
    publish.publish = publish_uncommitted


if __name__ == "__main__":
    fault, log = sys.argv[1:3]
    del sys.argv[1:3]
    ask: Callable[[Task], BatchScorer] = local_scorer
    if fault == "poison":
        ask = functools.partial(Poisoned, log=log, deeds=DEEDS)
    elif fault == "uncommitted":
        _without_commit()
    failpoint = None
    if "--failpoint" in sys.argv:
        place = sys.argv.index("--failpoint")
        failpoint = sys.argv[place + 1]
        del sys.argv[place : place + 2]
    cli.run(Score, functools.partial(main, ask=ask, failpoint=failpoint))
