"""Make the pictures of the pages in README and docs, from the shipped model and the bundled reviews.

    python -m benchmarks.screenshots ANOTHER_MODEL SHOTS [DOCS]

ANOTHER_MODEL is compared with the shipped one. SHOTS, a folder, gets every page at three widths, light and dark; DOCS (default: docs)
gets the pictures. Needs Pillow, and Chromium on the path.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from PIL import Image, ImageOps
from playwright.sync_api import Page, sync_playwright

from deploy.local import free_ports
from han.data.samples import REVIEWS

JOBS = [sys.executable, "-m", "jobs"]
REVIEW = "sample/0073"  # a positive review with sentences on both sides
WIDTHS, HEIGHT = (390, 820, 1280), 900
STARTS = {"attention": "article", "review": "article", "gallery": ".find", "corpus": "main", "changes": "article", "page": "#answer"}
SHEET = (("light", 390), ("dark", 820), ("light", 1280))  # of each page in the contact sheet
SHEET_SCALE, SHEET_HEIGHT, GAP = 0.5, 760, 16
NUM_COLOURS = 64  # of the contact sheet: keeps it below 250 kB
PICTURES = {"attention": "attention-light-820", "effects": "review-light-820", "page": "page-light-1280"}  # of one element
PATIENCE_S = 300


def main(against: str, shots: str, docs: str = "docs") -> None:
    out = Path(shots)
    out.mkdir(parents=True, exist_ok=True)
    reviews = {review["review_id"]: review["text"] for review in map(json.loads, REVIEWS.read_text(encoding="utf-8").splitlines())}
    pages = write_pages(out, reviews[REVIEW], against)
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for scheme in ("light", "dark"):
            for width in WIDTHS:
                size = {"width": width, "height": HEIGHT}
                with browser.new_context(viewport=size, color_scheme=scheme, reduced_motion="reduce", bypass_csp=True) as context:
                    page = context.new_page()
                    for name, path in pages.items():
                        page.goto(path.resolve().as_uri())
                        if name in ("review", "changes"):
                            page.locator("input.effects").check()
                        shoot(page, out, f"{name}-{scheme}-{width}", STARTS.get(name, "main"))
                    page.goto(address)
                    ask(page, reviews[REVIEW])
                    shoot(page, out, f"page-{scheme}-{width}", STARTS["page"])
        browser.close()
    for name, shot in PICTURES.items():
        save(padded(Image.open(out / f"{shot}-whole.png")), Path(docs) / f"{name}.png")
    save(Image.open(out / "corpus-light-1280.png"), Path(docs) / "corpus.png")
    save(sheet(out, ("page", "review", "gallery", "corpus", "changes", "evaluation")), Path(docs) / "pages.png", num_colours=NUM_COLOURS)


def write_pages(out: Path, text: str, against: str) -> dict[str, Path]:
    """The pages of the jobs, by name."""
    corpus, evaluation = out / "corpus", out / "evaluation"
    if not evaluation.exists():
        run("score", "--input", "sample", "--effects", "words", "--out", out / "scores")
        run("explain", "--corpus", "--input", out / "scores", "--out", corpus, "--min-count", 2)
        run("evaluate", "--data", "sample", "--out", evaluation)
    run("explain", "--text", text, "--out", out / "review.html")
    run("explain", "--input", "sample", "--order", "wrong", "--out", out / "gallery.html")
    run("explain", "--input", "sample", "--against", against, "--out", out / "changes.html")
    named = {name: out / f"{name}.html" for name in ("review", "gallery", "changes")}
    return {"attention": out / "review.html", **named, "corpus": corpus / "index.html", "evaluation": evaluation / "evaluation.html"}


def run(*arguments: object) -> None:
    subprocess.run([*JOBS, *map(str, arguments)], check=True)


@contextmanager
def served() -> Iterator[str]:
    """The address of `han serve` with the shipped model."""
    (port,) = free_ports(1)
    address = f"http://127.0.0.1:{port}/"
    with subprocess.Popen([*JOBS, "serve", "--port", str(port), "--deadline-s", "30"]) as server:
        try:
            wait(address + "readyz")
            yield address
        finally:
            server.terminate()


def wait(address: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            urlopen(address, timeout=5)  # noqa: S310 - http to this machine
            return
        except (URLError, TimeoutError):
            time.sleep(0.5)
    raise TimeoutError(f"{address} is not ready after {PATIENCE_S} s")


def shoot(page: Page, out: Path, name: str, start: str) -> None:
    """What a window shows from the first element `start`, and that whole element."""
    page.mouse.move(0, 0)  # else a word under it shows its numbers
    first = page.locator(start).first
    first.evaluate("element => scrollTo(0, element.getBoundingClientRect().top + scrollY)")
    page.screenshot(path=out / f"{name}.png")
    first.screenshot(path=out / f"{name}-whole.png")


def ask(page: Page, text: str) -> None:
    """Score the text on the page of the service, with its effects."""
    page.fill("#text", text)
    page.click("#score")
    page.locator("#answer:not(.waiting)").wait_for()
    with page.expect_response("**/v1/score"):
        page.click("#view")
    page.locator("body:not(.busy)").wait_for()


def sheet(out: Path, names: tuple[str, ...]) -> Any:
    """One row for each page."""
    rows = [
        [Image.open(out / f"{name}-{scheme}-{width}.png").crop((0, 0, width, SHEET_HEIGHT)) for scheme, width in SHEET] for name in names
    ]
    width, height = (round(SHEET_SCALE * length) for length in (sum(width for _, width in SHEET), SHEET_HEIGHT))
    pasted = Image.new("RGB", (width + (len(SHEET) + 1) * GAP, len(rows) * (height + GAP) + GAP), "#8a8a8a")
    for row, shots in enumerate(rows):
        left = GAP
        for shot in shots:
            small = shot.resize((round(SHEET_SCALE * shot.width), height), Image.Resampling.LANCZOS)
            pasted.paste(small, (left, GAP + row * (height + GAP)))
            left += small.width + GAP
    return pasted


def padded(picture: Any) -> Any:
    """The picture of an element without the line above it, with a margin of its paper."""
    plain = picture.convert("RGB").crop((0, 2, picture.width, picture.height))
    return ImageOps.expand(plain, 2 * GAP, fill=plain.getpixel((0, 0)))


def save(picture: Any, path: Path, *, num_colours: int = 256) -> None:
    picture.convert("RGB").quantize(num_colours, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB, {picture.width} x {picture.height}")


if __name__ == "__main__":
    main(*sys.argv[1:])
