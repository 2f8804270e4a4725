"""The command `han` and what all commands share: help, flags, settings files, messages, exit codes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import han
from han.config import SETTINGS_FILE, ColumnsConfig, TrainConfig
from han.explain.pieces import signed
from han.types import Score as Answer
from han.types import UserError
from jobs import cli
from jobs.__main__ import COMMANDS
from jobs.prepare import Prepare
from jobs.score import Score
from jobs.train import Train, defaults

ROOT = Path(__file__).parents[2]
HAN = [sys.executable, "-m", "jobs"]
HEAVY = ("torch", "ray", "nltk", "scipy", "gensim", "optuna", "fastapi")


def call(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run([*HAN, *arguments], input=text, capture_output=True, text=True, env=environment, timeout=100)


def test_help_lists_every_command_in_one_line_each() -> None:
    printed = call("--help").stdout
    assert printed.startswith("usage: han COMMAND")
    assert [name for name in COMMANDS if f"\n  {name:<10}" not in printed] == []


def test_every_job_is_a_command() -> None:
    jobs = {path.stem for path in (ROOT / "jobs").glob("*.py") if "def run() -> None:" in path.read_text(encoding="utf-8")}
    assert jobs == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    code = (
        f"import sys; sys.argv = ['han', '{command}', '--help']\n"
        "from jobs.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n    assert leaving.code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == "[]\n"
    assert done.stdout.startswith(f"usage: han {command} ")
    assert "\nexamples:\n" in done.stdout


def test_a_mistyped_command_is_one_line_with_a_suggestion() -> None:
    done = call("scroe")
    assert (done.returncode, done.stderr) == (2, "error: han has no command scroe. Did you mean score? han --help lists all commands.\n")


def test_the_version_is_the_package_version() -> None:
    assert call("--version").stdout == call("score", "--version").stdout == f"han {han.__version__}\n"


@pytest.mark.parametrize("arguments", [("score", "--input", "sample", "--version"), ("--verbose", "--version")], ids=" ".join)
def test_the_version_is_printed_wherever_the_flag_stands(arguments: tuple[str, ...]) -> None:
    done = call(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"han {han.__version__}\n", "")


@pytest.mark.parametrize("flag", [("--dry-run",), ("--dry-run", "True"), ("--dry-run=True",), ("--dry-run", "true")])
def test_a_boolean_flag_needs_no_value_and_accepts_true(flag: tuple[str, ...]) -> None:
    assert cli.parse(Score, ["--input", "sample", *flag, "--out", "scores"]).dry_run


@pytest.mark.parametrize("flag", [("--no-dry-run",), ("--dry-run", "False"), ()])
def test_a_boolean_flag_can_be_turned_off(flag: tuple[str, ...]) -> None:
    assert not cli.parse(Score, ["--input", "sample", "--out", "scores", *flag]).dry_run


def test_boolean_flags_of_groups_accept_true_and_false() -> None:
    arguments = ["--data", "data", "--out", "run", "--model.sentence-encoder", "False", "--train.gpu", "True"]
    parsed = cli.parse(Train, arguments)
    assert not parsed.model.sentence_encoder
    assert parsed.train.gpu


@pytest.mark.parametrize(
    ("flag", "wanted"),
    [
        ((), None),
        (("--drop-duplicates",), True),
        (("--no-drop-duplicates",), False),
        (("--drop-duplicates", "True"), True),
        (("--drop-duplicates", "False"), False),
        (("--drop-duplicates=False",), False),
    ],
)
def test_a_boolean_that_may_be_absent_is_a_flag_like_any_other(flag: tuple[str, ...], wanted: bool | None) -> None:
    assert cli.parse(Prepare, ["--input", "sample", "--out", "data", *flag]).drop_duplicates is wanted


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_values_in_words(command: str) -> None:
    printed = call(command, "--help").stdout
    assert [line for line in printed.splitlines() if re.search(r"\{None\}|\bSTR\b|\[\[|default: (None|True|False)?\)", line)] == []


def test_help_names_the_values_of_flags_and_positional_arguments() -> None:
    score = " ".join(call("score", "--help").stdout.split())
    for shown in ("--limit INT ", "--carry TEXT... ", "--max-bad-ratio FLOAT ", "--via {pool,serve} ", "(default: off)"):
        assert shown in score
    assert call("compare", "--help").stdout.startswith("usage: han compare [-h] RUN... ")
    assert call("predict", "--help").stdout.startswith("usage: han predict [-h] [OPTIONS] TEXT...\n")


def test_flags_without_a_prefix_have_the_title_of_their_group() -> None:
    boxes = call("score", "--help").stdout.split("╭─ ")[1:]
    wanted = {"options": "--input ", "columns options": "--columns.text ", "output options": "--effects ", "pool options": "--num-actors "}
    assert [box.partition(" ─")[0] for box in boxes] == list(wanted)
    assert [flag in box for flag, box in zip(wanted.values(), boxes, strict=True)] == [True] * 4
    assert "Content of a folder of scores" in boxes[2]


@pytest.mark.parametrize("command", ["prepare", "score", "train", "tune", "trim"])
def test_required_flags_come_first(command: str) -> None:
    box = call(command, "--help").stdout.split("╭─ options")[1].split("╰")[0]
    entries = re.split(r"\n│ (?=--)", box)[1:]
    required = ["(required)" in entry for entry in entries]
    assert any(required)
    assert required == sorted(required, reverse=True)


@pytest.mark.parametrize("file", [("--config", "{}"), ("--config={}",)])
def test_a_settings_file_is_named_with_or_without_an_equals_sign(tmp_path: Path, file: tuple[str, ...]) -> None:
    (tmp_path / "run.toml").write_text('data = "data"\nout = "run"\n')
    assert cli.parse(Train, [word.format(tmp_path / "run.toml") for word in file]) == Train(data="data", out="run")


@pytest.mark.parametrize("in_file", [False, True])
def test_flags_override_the_settings_file_and_both_override_the_sweep(tmp_path: Path, in_file: bool) -> None:
    found = {"train.learning_rate": 0.03, "train.batch_tokens": 999, "model.word_hidden": 7}
    (tmp_path / "best.json").write_text(json.dumps({"data": "data of the sweep", "overrides": found}))
    lines = ['out = "run"', f'sweep = "{tmp_path}"' if in_file else "", "[train]", "batch_tokens = 111", "epochs = 4"]
    (tmp_path / "run.toml").write_text("\n".join(lines))
    arguments = ["--config", str(tmp_path / "run.toml"), "--train.epochs", "6", *(() if in_file else ("--from", str(tmp_path)))]
    parsed = cli.parse(Train, arguments, defaults=defaults)
    assert (parsed.data, parsed.out, parsed.sweep) == ("data of the sweep", "run", str(tmp_path))
    assert (parsed.train.learning_rate, parsed.model.word_hidden) == (0.03, 7)
    assert (parsed.train.batch_tokens, parsed.train.epochs) == (111, 6)


def test_a_run_writes_the_settings_that_repeat_it(tmp_path: Path) -> None:
    settings = cli.parse(Train, ["--data", "data", "--out", str(tmp_path), "--train.epochs", "7", "--track.name", "mine"])
    (tmp_path / SETTINGS_FILE).write_text(cli.settings_toml(settings))
    file = str(tmp_path / SETTINGS_FILE)
    assert cli.parse(Train, ["--config", file]) == settings
    assert cli.parse(Train, ["--config", file, "--train.epochs", "8"]).train.epochs == 8
    assert tomllib.loads(Path(file).read_text())["train"]["epochs"] == 7


@pytest.mark.parametrize(("content", "said"), [("epochs = 3", "has the setting epochs, which does not exist"), ("=", "is not TOML")])
def test_settings_that_cannot_be_used_are_user_errors(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "run.toml").write_text(content)
    with pytest.raises(UserError, match=said):
        cli.parse(Train, ["--config", str(tmp_path / "run.toml")])
    with pytest.raises(UserError, match="cannot be read"):
        cli.parse(Train, ["--config", str(tmp_path / "none.toml")])


def test_only_settings_that_differ_from_the_default_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    cli.show("train", Train(data="data", out="run", train=TrainConfig(epochs=9)))
    assert capsys.readouterr().out == (f"train\n  {'data':<32} data\n  {'out':<32} run\n  {'train.epochs':<32} 9\n")


def test_suggested_commands_keep_the_named_columns() -> None:
    assert cli.columns_flags(ColumnsConfig()) == ""
    columns = ColumnsConfig(text="my body", label_names=("bad", "good"))
    assert cli.columns_flags(columns) == " --columns.text 'my body' --columns.label-names bad good"


def test_the_suggested_commands_of_two_runs_use_different_folders(tmp_path: Path) -> None:
    assert cli.unused(tmp_path / "run") == tmp_path / "run"
    (tmp_path / "run").mkdir()
    (tmp_path / "run-2").mkdir()
    assert cli.unused(tmp_path / "run") == tmp_path / "run-3"


def test_a_closed_pipe_ends_quietly() -> None:
    pipe = f"{sys.executable} -m jobs score --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", pipe], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    assert done.stdout.startswith("usage: ")


def test_reviews_are_predicted_from_arguments_files_and_standard_input(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "review.txt").write_text("The film was bad.")
    arguments = ["predict", "It was good.", str(tmp_path / "review.txt"), "-", "--json", "--model", str(tiny_model)]
    done = call(*arguments, text="Dull.")
    assert done.stderr == ""
    scorer = han.load(str(tiny_model))
    wanted = scorer.score(["It was good.", "The film was bad.", "Dull."])
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["label"] for each in found] == [each.label for each in wanted]  # type: ignore[union-attr]
    for each, other in zip(found, wanted, strict=True):
        assert each["probabilities"] == pytest.approx(other.probabilities, abs=1e-6)  # type: ignore[union-attr]


def test_the_effects_in_the_terminal_are_those_of_the_scorer(tiny_model: Path) -> None:
    text = "It was good. The film was bad, not dull. I loved it!"
    [wanted] = han.load(str(tiny_model)).score([text], effects="exact_words")
    assert isinstance(wanted, Answer)
    assert wanted.effects
    arguments = ("predict", text, "--model", str(tiny_model), "--effects", "exact_words")
    found = json.loads(call(*arguments, "--json").stdout)
    for name in ("evidence", "nothing", "sum", "interaction"):
        assert found["effects"][name] == pytest.approx(getattr(wanted.effects, name), abs=1e-6)
    shown = call(*arguments).stdout
    for sentence, expected in zip(found["sentences"], wanted.sentences or (), strict=True):
        assert sentence["effect"] == pytest.approx(expected.effect, abs=1e-6)
        of_words = [word.effect for word in expected.words or ()]
        assert [word["effect"] for word in sentence["words"]] == pytest.approx(of_words, abs=1e-6)
        assert re.search(
            rf" {re.escape(signed(expected.effect))} .{{8}} {re.escape(text[expected.start : expected.end])}$", shown, re.MULTILINE
        )
    assert f"evidence for {wanted.label} {signed(wanted.effects.evidence)} = " in shown


def test_the_old_spelling_of_predict_still_works(tiny_model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "han", "It was good.", "--model", str(tiny_model)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "It was good" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_review_without_a_word_is_a_user_error(tiny_model: Path) -> None:
    done = call("predict", "...", "--model", str(tiny_model))
    assert (done.returncode, done.stderr) == (2, "error: a review cannot be scored (empty_text): no word in the text\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("score", "--input", "nowhere.csv", "--out", "out"),
        ("prepare", "--input", "nowhere.csv", "--out", "out"),
        ("train", "--data", "nowhere", "--out", "out"),
        ("evaluate", "--data", "nowhere.csv", "--out", "out"),
        ("explain", "--input", "nowhere.csv"),
        ("verify", "--out", "nowhere"),
        ("compare", "nowhere"),
        ("promote", "nowhere"),
        ("score", "--input", "sample", "--out", "out", "--model", "nowhere"),
    ],
    ids=" ".join,
)
def test_a_wrong_path_is_an_error_of_one_line_before_ray_starts(arguments: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [*HAN, *arguments], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "starting Ray" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_slow_start_of_ray_is_an_error_of_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import ray

    def start(**options: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because some Ray processes failed.")

    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(cli, "_hide_lines_of_ray", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.connect()
    error = capfd.readouterr().err
    assert stop.value.code == cli.EXIT_RAY
    assert error.startswith("error: Ray did not start: try again (The current node timed out")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("host", "reason"), [("127.0.0.1", "Connection refused"), ("[::1]", "Connection refused"), ("nowhere.invalid", "")]
)
def test_an_address_without_a_ray_is_refused_before_ray_tries_for_minutes(host: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_RAY_ANSWERS_S", 0.3)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"{host}:{closed.getsockname()[1]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=rf"no Ray answers at RAY_ADDRESS {re.escape(address)}: start one or unset RAY_ADDRESS .*{reason}"):
        cli.connect()


def test_a_worker_out_of_memory_is_one_line_with_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    from ray.exceptions import OutOfMemoryError
    from ray.train import WorkerGroupError

    with pytest.raises(SystemExit) as stop:
        cli._explain(WorkerGroupError("many\nlines", {1: OutOfMemoryError("low on memory")}))
    error = capsys.readouterr().err
    assert stop.value.code == cli.EXIT_RAY
    assert error.startswith("error: a worker ran out of memory: use fewer workers")
    assert error.count("\n") == 1


def test_the_next_command_after_python_m_jobs_has_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["some/python", "-m", "jobs", "prepare"])
    monkeypatch.setattr(cli, "invoked_as", ("", "prepare"))
    assert cli.command("train") == "some/python -m jobs train"


def test_sigterm_during_the_start_of_ray_is_an_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def job(settings: Score) -> None:
        sys.exit(15)  # as Ray's handler of SIGTERM does

    monkeypatch.setattr(sys, "argv", ["jobs.score", "--input", "sample", "--out", "scores"])
    with pytest.raises(SystemExit) as stop:
        cli.run(Score, job)
    assert stop.value.code == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted; run the same command to resume\n"


@pytest.mark.parametrize("signal_error", [cli._Interrupted, KeyboardInterrupt])
def test_a_signal_inside_compiled_code_is_an_interruption(
    signal_error: type[BaseException], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(settings: Score) -> None:
        raise SystemError("a built-in returned a result with an exception set") from signal_error()  # as CPython reports it

    monkeypatch.setattr(sys, "argv", ["jobs.score", "--input", "sample", "--out", "scores"])
    with pytest.raises(SystemExit) as stop:
        cli.run(Score, job)
    assert stop.value.code == cli.EXIT_INTERRUPTED
    assert capsys.readouterr().err == "interrupted; run the same command to resume\n"
