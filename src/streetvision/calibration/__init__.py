"""Calibration of classifier scores, and selective prediction with risk control."""
