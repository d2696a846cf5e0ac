"""From any source of runs to a `RunsTable`."""
