"""The evaluation report: its contents, its plots and its HTML page."""
