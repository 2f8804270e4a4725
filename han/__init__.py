"""A hierarchical attention network over reviews: see docs/design.md."""

__version__ = "0.1.0"
