"""TMKD and RichKD inside the frameworks that people already use, one a file."""
