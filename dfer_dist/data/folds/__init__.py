"""Folds of a packed set: its own ones, or those of an overlay that is stored next to it."""
