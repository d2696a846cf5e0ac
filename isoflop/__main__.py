"""`python -m isoflop`: the `isoflop` program without its script on the path."""

from isoflop.cli import main

main()
