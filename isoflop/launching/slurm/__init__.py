"""SLURM's commands and signals; nothing here knows of studies."""
