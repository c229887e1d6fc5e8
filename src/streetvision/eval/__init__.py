"""Evaluation on numpy arrays: metrics, thresholds, confidence intervals, plots and the report."""
