"""`ann2snn finetune` as a script: see --help, or ann2snn/commands/finetune.py."""

from ann2snn.cli.flags import run_script
from ann2snn.commands import finetune

if __name__ == "__main__":
    run_script(finetune.main, finetune.__doc__)
