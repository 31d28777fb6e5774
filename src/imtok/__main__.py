"""Entry point of `python -m imtok`, which torchrun uses."""

import sys

from imtok.cli import main

sys.exit(main())
