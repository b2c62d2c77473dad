"""`python -m presel`."""

import sys

from presel.cli import main

sys.exit(main())
