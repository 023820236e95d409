"""The commands of ``dfer``."""
