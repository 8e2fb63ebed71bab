"""`ann2snn train` as a script: see --help, or ann2snn/commands/train.py."""

from ann2snn.cli.flags import run_script
from ann2snn.commands import train

if __name__ == "__main__":
    run_script(train.main, train.__doc__)
