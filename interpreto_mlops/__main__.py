"""`python -m interpreto_mlops` is the command `interpreto-mlops`."""

from interpreto_mlops.cli import main

main(prog_name="interpreto-mlops")
