"""The evaluation report: its content, its plots and its HTML page."""
