"""Sweep directories, workers, and how they are started."""
