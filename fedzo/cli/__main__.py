"""`python -m fedzo.cli` is the `fedzo` command."""

from fedzo.cli import main

main()
