"""From files to reviews: each input format has one reader, and `sources` finds out which files an input names.

A record that cannot be a review is returned beside the others with its reason, so records in = reviews out + bad records.
A reader imports neither torch nor Ray.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from han.data.sources import find_shards as find_shards
    from han.data.sources import random_review as random_review
    from han.data.sources import read as read
    from han.data.sources import reviews as reviews

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "sources": ["find_shards", "random_review", "read", "reviews"],
    },
)
