"""`python -m streetvision` is the command line."""

from streetvision.cli.app import main

main()
