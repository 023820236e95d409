"""Descriptions of clips: storage, generation, imports and label leakage."""
