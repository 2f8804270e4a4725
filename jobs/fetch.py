"""Download official data and verify it: `han fetch --name imdb`. `--input imdb` and `--vectors.source glove.6B.200d` call it."""

from __future__ import annotations

import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

from han.types import UserError
from jobs import cli

CACHE = Path.home() / ".cache" / "han"
GLOVE = re.compile(r"glove\.6B\.(50|100|200|300)d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """Download a data set and verify its checksum. An interrupted download resumes; a complete one is only verified."""

    name: str
    """imdb (84 MB), or glove.6B.50d, .100d, .200d or .300d (862 MB)"""
    out: str = str(CACHE)
    """the folder to keep it in"""


def main(job: Fetch) -> None:
    print(f"{job.name} is in {fetch(job.name, cli.local(job.out, '--out'))}")
    print(f"next: {cli.command('prepare')} --input imdb --out data")


def fetch(name: str, folder: Path = CACHE) -> Path:
    """The folder of Parquet files of IMDB, or the text file of GloVe's vectors; downloaded if it does not exist."""
    from han.data import download, imdb

    if name == "imdb":
        if not (folder / "imdb").is_dir():
            archive = _download(imdb.URL, folder, imdb.CHECKSUMS, "give its path with --input")
            imdb.unpack_imdb(archive, folder / ".imdb")
            (folder / ".imdb").rename(folder / "imdb")
        return folder / "imdb"
    if not GLOVE.fullmatch(name):
        raise UserError(f"{name} is not known: give imdb or glove.6B.50d, .100d, .200d or .300d")
    vectors = folder / f"{name}.txt"
    if not vectors.exists():
        archive = _download(download.GLOVE_URL, folder, download.GLOVE_CHECKSUMS, "unzip it and give its path with --vectors.source")
        unfinished = folder / f".{name}"
        with zipfile.ZipFile(archive) as pack, pack.open(f"{name}.txt") as packed, unfinished.open("wb") as target:
            while chunk := packed.read(download.CHUNK_BYTES):
                target.write(chunk)
        unfinished.rename(vectors)
    return vectors


def _download(url: str, folder: Path, checksums: dict[str, str], instead: str) -> Path:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from han.data import download

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress("[progress.description]{task.description}", *columns) as bar:
        task = bar.add_task(url.rsplit("/", 1)[-1])
        return download.download(
            url,
            folder / url.rsplit("/", 1)[-1],
            checksums,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            instead=instead,
        )


def run() -> None:
    cli.run(Fetch, main, examples=("--name imdb", "--name glove.6B.200d"))


if __name__ == "__main__":
    run()
