"""Entry point of `python -m multilora`."""

from multilora.cli import main

main()
