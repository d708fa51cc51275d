"""`python -m pds_engine.router` is `pds-router`."""

from pds_engine.router.cli import main

if __name__ == "__main__":
    main()
