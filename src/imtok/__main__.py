"""`python -m imtok`, the entry for torchrun."""

import sys

from imtok.cli import main

sys.exit(main())
