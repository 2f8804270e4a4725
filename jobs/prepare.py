"""Raw reviews to an encoded folder: `python -m jobs.prepare --input reviews.parquet --out data`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from han.config import PrepareConfig, as_json
from han.train.prepare import prepare
from jobs import cli
from jobs.fetch import GLOVE, fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(PrepareConfig):
    """Count words, build the vocabulary and the word vectors, encode every review. Run again: nothing changed, nothing done."""

    input: str
    """reviews: a file, a glob or a folder of Parquet, CSV or JSONL (.gz, .zst), an aclImdb folder or archive, `imdb` to download it,
    or `sample` for the bundled ones"""
    out: str
    """the encoded folder: new, or what the same command left"""
    dev_ids: str | None = None
    """file of development review ids, one a line; without it dev_ids.txt beside the input, else a tenth by hash of the text"""


def main(job: Prepare) -> None:
    out = cli.local(job.out, "--out")
    source = str(fetch("imdb")) if job.input == "imdb" else job.input if job.input == "sample" else cli.path(job.input, "--input")
    known = job.vectors.source in ("in-domain", "random")
    glove = GLOVE.fullmatch(job.vectors.source)
    vectors = job.vectors.source if known else str(fetch(job.vectors.source)) if glove else cli.path(job.vectors.source, "--vectors.source")
    beside = Path(source) / "dev_ids.txt"
    dev_ids = Path(cli.path(job.dev_ids, "--dev-ids")) if job.dev_ids else beside if beside.is_file() else None
    settings = {name: value for name, value in as_json(job).items() if name not in ("input", "out", "dev_ids")}
    cli.show(f"prepare {source} -> {out}", settings | {"dev_ids": str(dev_ids or "a tenth by hash")})
    cli.connect()
    config = PrepareConfig(**{name: getattr(job, name) for name in settings} | {"vectors": replace(job.vectors, source=vectors)})
    folder = prepare(source, out, config, dev_ids=dev_ids, report=cli.progress())
    counts = folder.counts
    print(
        f"{counts['train']:,} training and {counts['development']:,} development reviews, {counts['unlabelled']:,} unlabelled for words; "
        f"{counts['copies_dropped']:,} copies dropped, {counts['refused']:,} refused; {len(folder.encoder.vocab):,} words, "
        f"vectors of {folder.vectors.shape[1]}; labels {', '.join(folder.labels)}; encoding {folder.fingerprint}"
    )
    print(f"next: python -m jobs.train --data {out} --out {out.parent / 'run'}")


if __name__ == "__main__":
    cli.run(Prepare, main)
