"""`ann2snn train-snn` as a script: see --help, or ann2snn/commands/train_snn.py."""

from ann2snn.cli.flags import run_script
from ann2snn.commands import train_snn

if __name__ == "__main__":
    run_script(train_snn.main, train_snn.__doc__)
