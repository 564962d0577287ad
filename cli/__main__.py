"""``python -m cli`` is ``replay``."""

from cli import main

main(prog_name="replay")
