"""Functions about Ray itself: whether a job fits the cluster, metrics for Prometheus, options of Ray Data."""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from han.cluster.doctor import Finding as Finding

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "doctor": ["Finding"],
    },
)
