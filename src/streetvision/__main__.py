"""`python -m streetvision` is the command line."""

from streetvision.cli import main

main()
