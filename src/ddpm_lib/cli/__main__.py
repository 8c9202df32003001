"""`python -m ddpm_lib.cli` is `ddpm`; launchers such as torchrun want a module or a file."""

import sys

from ddpm_lib.cli import main

sys.exit(main())
