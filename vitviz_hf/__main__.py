"""`python -m vitviz_hf` is `vitviz`."""

import sys

from vitviz_hf.cli.main import main

sys.exit(main())
