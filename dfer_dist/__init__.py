"""Train, compare and publish CLIP-based models of dynamic facial expressions."""

__version__ = "0.1.0"
