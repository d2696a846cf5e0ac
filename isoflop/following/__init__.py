"""Follow-up design: what a study will tell before it is run, and which further runs are worth their compute."""
