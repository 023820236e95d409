"""Portable checkpoints, independent of world size and ZeRO stage."""
