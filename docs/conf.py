"""Sphinx configuration: `make docs` builds the site offline."""

import importlib.metadata

project = "streetvision"
release = version = importlib.metadata.version("streetvision")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False
html_theme = "furo"
html_title = "streetvision"
html_show_sphinx = False
exclude_patterns = ["_build"]
myst_heading_anchors = 3
