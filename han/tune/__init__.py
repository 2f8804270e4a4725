"""Hyperparameter search: Ray Tune runs the trials, an Optuna study on disk records them, a page shows them.

A trial is `train.trainer.fit` with other settings.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from han.tune.sweep import read_best as read_best

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "sweep": ["read_best"],
    },
)
