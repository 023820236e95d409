"""Faces: detection, tracking, alignment, landmarks and parsing maps."""
