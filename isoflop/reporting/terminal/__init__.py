"""Text for the terminal: tables, bills, fits, status, progress."""
