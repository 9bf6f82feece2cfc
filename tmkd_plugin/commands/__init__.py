"""The sub-commands of ``tmkd``, one a file: ``add_parser(commands)`` declares it, ``run(arguments)`` does it."""
