"""Readers that turn any source of runs into a `RunsTable`."""
