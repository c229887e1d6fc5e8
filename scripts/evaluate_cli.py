"""The specification's command line for evaluation: python scripts/evaluate_cli.py --bundle PATH/bundle.json."""

import sys

from streetvision.cli.app import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
