"""`ann2snn convert` as a script: see --help, or ann2snn/commands/convert.py."""

from ann2snn.cli.flags import run_script
from ann2snn.commands import convert

if __name__ == "__main__":
    run_script(convert.main, convert.__doc__)
