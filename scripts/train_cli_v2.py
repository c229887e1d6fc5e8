"""The specification's command line for training: python scripts/train_cli_v2.py pipeline.phases=[phase1] KEY=VALUE."""

import sys

from streetvision.cli.app import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
