"""Helpers of the tests of tracking."""
