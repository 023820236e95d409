"""Shards of clips: index, reader, remote store, cache and sidecars."""
