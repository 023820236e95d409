"""Runs compared clip by clip: paired statistics, their tables, and what they show."""
