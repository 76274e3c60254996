"""`python -m flows.cli`."""

from flows.cli import main

main(prog_name="glotloom")
