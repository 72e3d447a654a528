"""``python -m ranvier.cli`` is ``ranvier``."""

from ranvier.cli.main import main

main(prog_name="ranvier")
