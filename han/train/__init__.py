"""From reviews to an artifact: `prepare` encodes an input, `trainer.fit` trains on it with Ray Train.

Both resume after their processes die. The development split decides; no test review is read here.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from han.train.trainer import fit as fit

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "trainer": ["fit"],
    },
)
