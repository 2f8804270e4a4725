"""The network, its batches, and the artifact: the folder that holds all that scoring needs.

A batch is three flat arrays without padding (`ragged`). `artifact.load` is the only way from disk to a model, and nothing is pickled.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from han.model.artifact import Artifact as Artifact
    from han.model.network import HAN as HAN
    from han.model.ragged import collate as collate

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "artifact": ["Artifact"],
        "network": ["HAN"],
        "ragged": ["collate"],
    },
)
