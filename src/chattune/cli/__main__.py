"""`python -m chattune.cli`: the command line without its script."""

from chattune.cli import main

main()
