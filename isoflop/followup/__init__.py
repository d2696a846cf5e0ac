"""Selection of follow-up runs, and expected intervals of plans."""
