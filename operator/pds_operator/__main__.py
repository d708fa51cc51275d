"""`python -m pds_operator`."""

from pds_operator.cli import main

main()
