# SPDX-License-Identifier: Apache-2.0
"""`python -m virtiofs` is the command `virtiofs`."""

import sys

from virtiofs.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
