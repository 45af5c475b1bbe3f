"""`python -m multilora`."""

from multilora.cli import main

main()
