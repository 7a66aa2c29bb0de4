"""`python -m pad`: the same as the command `pad`."""

import sys

from pad.commands.parser import main

if __name__ == "__main__":
    sys.exit(main())
