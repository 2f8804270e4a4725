"""Scores drawn on the original text: an HTML page, a fragment for a notebook, a terminal; and charts as SVG.

The pages load nothing, and no text can act as markup or as a terminal command.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from han.explain.html import fragment as fragment
    from han.explain.html import page as page

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "html": ["fragment", "page"],
    },
)
