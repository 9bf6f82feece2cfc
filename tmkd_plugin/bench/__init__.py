"""Comparisons of a baseline with its enhanced self."""
