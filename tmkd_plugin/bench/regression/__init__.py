"""Whether a small comparison still gives what it gave: a recorded reference, rules, and reports for people and for CI."""
