"""``tmkd perf``: how fast this package is, beside how fast arithmetic lets it be, all measured in one run."""
