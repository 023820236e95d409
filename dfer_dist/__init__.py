"""Train, compare and publish CLIP-based models of dynamic facial expressions."""
