"""``python -m sparsemax_nb``."""

import sys

from .cli.main import main

sys.exit(main())
