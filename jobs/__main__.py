"""The command `han`: `han score --help`, `python -m jobs score --help`."""

from __future__ import annotations

import difflib
import importlib
import sys

import han

COMMANDS = {
    "predict": "score reviews from the command line, files or standard input",
    "score": "score a dump of reviews to Parquet with attention",
    "verify": "check a finished folder of scores",
    "explain": "draw attention on reviews, as one HTML page",
    "serve": "serve a model over HTTP, with a page",
    "fetch": "download IMDB or GloVe vectors",
    "prepare": "encode raw reviews for training",
    "train": "train a model with Ray Train",
    "tune": "search hyperparameters with Ray Tune and Optuna",
    "evaluate": "measure a model on labelled reviews",
    "compare": "show runs side by side",
    "promote": "make a model the best of a folder of models",
    "models": "list the promoted models with their metrics",
    "trim": "make a smaller model with fewer words",
    "doctor": "check whether jobs fit the cluster",
    "demo": "train, score and explain once on this machine",
}


def main() -> None:
    """Run the command that the first argument names."""
    arguments = sys.argv[1:]
    if "--version" in arguments:
        print(f"han {han.__version__}")
    elif arguments[:1] == ["--commands"]:
        print(" ".join(COMMANDS))
    elif not arguments or arguments[0] in ("-h", "--help", "help"):
        _print_help()
    elif arguments[0] not in COMMANDS:
        close = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        print(f"error: han has no command {arguments[0]}.{hint} han --help lists all commands.", file=sys.stderr)
        sys.exit(2)
    else:
        from jobs import cli

        cli.invoked_as = (_program(), arguments[0])
        sys.argv = [sys.argv[0], *arguments[1:]]
        importlib.import_module(f"jobs.{arguments[0]}").run()


def _program() -> str:
    """How `han` was called: its path; empty after `python -m jobs`."""
    return sys.argv[0] if not sys.argv[0].endswith("__main__.py") else ""


def _print_help() -> None:
    try:
        print("usage: han COMMAND [flags]\n\nHierarchical Attention Network on Ray.\n\ncommands:")
        for name, help_line in COMMANDS.items():
            print(f"  {name:<10}{help_line}")
        print("\nhan COMMAND --help lists the flags and examples of a command. han --version prints the version.")
        print('Shell completion in bash: complete -W "$(han --commands)" han')
        sys.stdout.flush()
    except BrokenPipeError:
        from jobs.cli import _leave_closed_pipe

        _leave_closed_pipe()


if __name__ == "__main__":
    main()
