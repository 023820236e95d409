"""Helpers of the tests of data: servers, sets of shards and their checks."""
