import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba.core.caching import FunctionCache

from han.config import TextConfig
from han.text import kernel
from han.text.encode import Encoder
from han.text.vocabulary import Vocab

ROOT = Path(__file__).parents[2]
USE = "import numpy, han.text.kernel as kernel; print(kernel.__file__, len(kernel.build_pairs(numpy.zeros((1, 2), numpy.int64))))"


def copy_of_package(folder: Path) -> Path:
    shutil.copytree(ROOT / "han", folder / "han", ignore=shutil.ignore_patterns("__pycache__", "pretrained"))
    return folder / "han" / "text" / "__pycache__"


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(folder), "HOME": os.devnull, "PATH": os.defpath, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen([sys.executable, "-c", USE], cwd=folder, env=environment, stdout=-1, stderr=-1, text=True)


def test_processes_that_start_together_share_an_empty_cache(tmp_path: Path) -> None:
    cache = copy_of_package(tmp_path)
    for _ in range(2):
        processes = [start(tmp_path) for _ in range(4)]
        outputs = [process.communicate(timeout=100) for process in processes]
        assert outputs == [(f"{tmp_path}/han/text/kernel.py 16\n", "")] * 4
    assert len(list(cache.glob("kernel.build_pairs-*.nbi"))) == 1


def test_each_process_compiles_for_itself_without_a_cache_folder(tmp_path: Path) -> None:
    cache = copy_of_package(tmp_path)
    cache.write_text("a file, so it cannot be a folder")
    assert start(tmp_path).communicate(timeout=100) == (f"{tmp_path}/han/text/kernel.py 16\n", "")


def test_a_full_disk_does_not_stop_a_compiled_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FunctionCache, "save_overload", full)
    assert kernel._compiled(_twice)(21) == 42


def _twice(number: int) -> int:
    return 2 * number


def test_a_function_is_compiled_once_for_all_texts() -> None:
    config = TextConfig(max_sentences=3, max_tokens=9, tags="any")
    for encoder in (Encoder(TextConfig(), None, Vocab(["<unk>"])), Encoder(config, None, Vocab(["<unk>", "a"]))):
        for texts in (["one"], ["", "two. Three.", "four"], ["\u0130 five", "six"]):
            encoder.encode_batch(texts)
    for function in (kernel.cut, kernel.look_up, kernel.build_words, kernel.build_pairs):
        assert len(function.dispatcher.signatures) == 1


def test_an_empty_batch_has_empty_arrays() -> None:
    batch = Encoder(TextConfig(), None, Vocab(["<unk>"])).encode_batch([])
    assert (len(batch.kept), batch.refused, batch.spans.shape, len(batch.num_unknown)) == (0, (), (0, 2), 0)
    assert {array.dtype for array in (batch.token_ids, batch.spans, batch.num_tokens, batch.num_unknown)} == {np.dtype(np.int32)}
