"""``python -m tmkd_plugin`` is the command ``tmkd``."""

from tmkd_plugin.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
