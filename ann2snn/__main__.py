"""python -m ann2snn: the command `ann2snn`, see `ann2snn.commands.main`."""

import sys

from .commands.main import main

if __name__ == "__main__":
    sys.exit(main())
