"""Sphinx: the pages of this folder as a site, built offline by `make docs`."""

import importlib.metadata

project = "streetvision"
release = version = importlib.metadata.version("streetvision")
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "streetvision"
html_show_sphinx = False
exclude_patterns = ["_build"]
myst_heading_anchors = 3
