"""Plots of reports, predictions and training."""
