"""fit.json and fit.npz: writing, reading, and the laws read back."""
