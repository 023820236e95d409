"""Checks of this machine and of a cluster."""
