"""`python -m isoflop`: the `isoflop` program, where its script is not on the path."""

from isoflop.cli import main

main()
