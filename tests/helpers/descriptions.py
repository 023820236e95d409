"""Descriptions written for tests."""

from __future__ import annotations

from dfer_dist.data.captions.store import (
    Source,
)

MODEL = Source({"kind": "endpoint", "name": "m", "language": "en", "frames": 8})
