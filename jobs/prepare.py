"""Raw reviews to an encoded folder: `han prepare --input reviews.parquet --out data`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from han.config import PrepareConfig, as_json
from han.types import UserError
from jobs import cli

EXAMPLES = (
    "--input imdb --out data",
    "--input reviews.csv --out data --columns.text body --columns.label stars --columns.label-names negative positive",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepare(PrepareConfig):
    """Count words, build the vocabulary and the word vectors, encode every review. Does nothing if the folder is up to date."""

    input: str
    """reviews: a file, a glob or a folder of Parquet, CSV or JSONL (.gz, .zst), an aclImdb folder or archive, `imdb` to download it,
    or `sample` for the bundled reviews"""
    out: str
    """the encoded folder: new, or from the same command"""
    dev_ids: str | None = None
    """file with the ids of the development reviews, one a line; default: dev_ids.txt beside the input, for `imdb` those of the shipped
    model, else a tenth by hash of the text"""


def main(job: Prepare) -> None:
    from jobs.fetch import GLOVE, fetch

    out = cli.local(job.out, "--out")
    source = str(fetch("imdb")) if job.input == "imdb" else job.input if job.input == "sample" else cli.path(job.input, "--input")
    glove = GLOVE.fullmatch(job.vectors.source)
    vectors = job.vectors.source
    if job.vectors.is_file:
        vectors = str(fetch(vectors)) if glove else cli.path(vectors, "--vectors.source")
    dev_ids = _dev_ids(job, source)
    cli.show(f"prepare {source} -> {out}", job)
    print(f"  development reviews: {dev_ids or 'a tenth by hash of the text'}", flush=True)
    names = [name for name in as_json(job) if name not in ("input", "out", "dev_ids")]
    config = PrepareConfig(**{name: getattr(job, name) for name in names} | {"vectors": replace(job.vectors, source=vectors)})
    settings = replace(
        job,
        input=job.input if job.input == "imdb" else source,
        out=str(out),
        dev_ids=job.dev_ids and str(dev_ids),
        vectors=job.vectors if glove else config.vectors,
    )
    cli.check_out(out, "encoding.json", ".staging")
    _check(source, out, config, dev_ids)
    cli.connect()
    from han.train.prepare import prepare
    from jobs.progress import Steps

    with cli.repeatable(settings, out):
        folder = prepare(source, out, config, dev_ids=dev_ids, report=Steps())
    counts = folder.counts
    print(
        f"{counts['train']:,} training and {counts['development']:,} development reviews; {counts['unlabelled']:,} unlabelled reviews; "
        f"{counts['copies_dropped']:,} copies dropped, {counts['refused']:,} refused; {len(folder.encoder.vocab):,} words, "
        f"vectors of {folder.vectors.shape[1]}; labels {', '.join(folder.labels)}; encoding {folder.fingerprint}"
    )
    print(f"next: {cli.command('train')} --data {out} --out {cli.unused(out.parent / 'run')}")


def _dev_ids(job: Prepare, source: str) -> Path | None:
    """The file with the ids of the development reviews; None if a hash chooses them."""
    if job.dev_ids:
        given = Path(cli.path(job.dev_ids, "--dev-ids"))
        if not given.is_file():
            raise UserError(f"--dev-ids {given} is missing: give a file with one id a line")
        return given
    beside = Path(source) / "dev_ids.txt"
    if job.input == "imdb" and not beside.is_file():
        from han.data import imdb

        return imdb.DEVELOPMENT
    return beside if beside.is_file() else None


def _check(source: str, out: Path, config: PrepareConfig, dev_ids: Path | None) -> None:
    """Find errors in the settings and the input before Ray starts; settings first, because a large CSV takes long to look at."""
    from han.data import sources
    from han.train import staging

    settings = staging.job_of(config, dev_ids)
    staging.is_finished(out, settings)
    shards = sources.find_shards(source, config.columns, labelled=True)
    staging.is_finished(out, settings | {"source": sources.identities(shards)})


def run() -> None:
    cli.run(Prepare, main, examples=EXAMPLES)


if __name__ == "__main__":
    run()
