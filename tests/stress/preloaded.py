"""What the processes of `children` have imported when they start."""

import os

os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", MPLBACKEND="Agg")

from tests.warm import import_heavy

import_heavy()

import vitviz_hf.atlas.write  # noqa: E402
import vitviz_hf.cli.main  # noqa: E402
import vitviz_hf.experiments.run  # noqa: E402
import vitviz_hf.optimize.loop  # noqa: E402, F401
