"""Text for the terminal: tables, bills, fits, status and progress."""
