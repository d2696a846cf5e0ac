"""Predictions from laws: optimum, near-optimal sizes, configurations that a recipe can make."""
