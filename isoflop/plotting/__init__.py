"""Figures from numbers: every function takes arrays or tables and returns Axes."""
