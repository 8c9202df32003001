"""`python -m ddpm_lib` is `ddpm`."""

import sys

from ddpm_lib.cli import main

if __name__ == "__main__":
    sys.exit(main())
