"""Run directories, loss logs and the table of a study's runs."""
