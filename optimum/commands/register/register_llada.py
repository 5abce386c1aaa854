"""Lets `optimum-cli export` know LLaDA: Optimum imports every file of this folder before it runs a command.

The folders above this file belong to Optimum and have no `__init__.py`.
"""

import sys
from contextlib import suppress

# LLaDA adds no command.
REGISTER_COMMANDS: list = []

# The other commands need none of it, and it takes a second to import. An error here would break all of them.
if "export" in sys.argv[1:2]:
    with suppress(Exception):
        from llada_conversion.optimum_configs import register

        register()
