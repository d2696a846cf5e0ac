"""Frozen results of fits: laws, intervals, diagnostics, text, JSON and HTML."""
