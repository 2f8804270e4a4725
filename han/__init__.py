"""A hierarchical attention network over reviews, trained, tuned and served with Ray.

    import han
    scorer = han.load("imdb")
    scorer.score(["A dull film with one good scene."])

docs/design.md shows the packages and which may import which.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from han.score.scorer import Scorer as Scorer
    from han.score.scorer import load as load

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={"score.scorer": ["Scorer", "load"]})
