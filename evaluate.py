"""`ann2snn evaluate` as a script: see --help, or ann2snn/commands/evaluate.py."""

from ann2snn.cli.flags import run_script
from ann2snn.commands import evaluate

if __name__ == "__main__":
    run_script(evaluate.main, evaluate.__doc__)
