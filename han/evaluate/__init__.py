"""How good a model is: its answers against labels, and runs side by side. Only here is a test split opened."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from han.evaluate.compare import Compared as Compared

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "compare": ["Compared"],
    },
)
