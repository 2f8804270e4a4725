"""`python -m han` is the command `han`; `python -m han "text"` is `han predict "text"`."""

import sys

from jobs.__main__ import COMMANDS, main

if __name__ == "__main__":
    first = next(iter(sys.argv[1:]), "")
    if first not in COMMANDS and first not in ("-h", "--help", "--version"):
        sys.argv.insert(1, "predict")
    main()
