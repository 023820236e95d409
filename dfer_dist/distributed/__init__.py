"""Ranks, collectives, preemption and the watchdog."""
