"""The queued jobs of a study: arrays, states, reconciliation."""
