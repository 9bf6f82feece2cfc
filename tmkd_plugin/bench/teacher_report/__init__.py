"""Calibration and quality of the teachers and students of a finished comparison."""
