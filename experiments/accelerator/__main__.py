"""`python -m experiments.accelerator`: see `driver`."""

import sys

from experiments.accelerator.driver import main

if __name__ == "__main__":
    sys.exit(main())
