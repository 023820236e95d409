"""From the official lists to batches: clip records, shards, the plan of an epoch, the stream."""
