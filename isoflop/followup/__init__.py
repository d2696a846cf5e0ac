"""Follow-up runs worth their compute, and the intervals that a plan would give."""
