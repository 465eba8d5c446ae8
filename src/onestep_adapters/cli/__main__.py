"""``python -m onestep_adapters.cli`` is ``onestep``."""

import sys

from onestep_adapters.cli import main

sys.exit(main())
