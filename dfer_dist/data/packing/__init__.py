"""Packing of clip records into shards."""
