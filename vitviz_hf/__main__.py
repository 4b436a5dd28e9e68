"""`python -m vitviz_hf` is `vitviz`."""

import sys

from vitviz_hf.cli import main

sys.exit(main())
