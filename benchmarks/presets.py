"""What to spend a CPU's time on: transfer score of five known features for settings that cost the same.

Every setting sees 120 augmented images for each feature, so the time is the same but for noise.

    python benchmarks/presets.py [--features 11.mlp_act:441 ...]
"""

import argparse
import time

from vitviz_hf import VisualizeConfig, load_model, visualize

# From real images: vertical bars, leaf green, heaps of round fruit, wheels, animal faces.
FEATURES = ["5.mlp_act:1123", "5.mlp_act:966", "8.mlp_act:908", "10.mlp_act:702", "11.mlp_act:441"]
SETTINGS = [
    {"steps": steps, "copies": 120 // steps, "learning_rate": rate} for rate in (0.05, 0.1) for steps in (120, 60, 30)
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", nargs="+", default=FEATURES)
    features = parser.parse_args().features
    view = load_model("builtin")
    print("transfer scores of", *features)
    for setting in SETTINGS:
        start = time.perf_counter()
        results = visualize(view, features, VisualizeConfig.preset("fourier", **setting))
        scores = [r.transfer_score for r in results]
        seconds = time.perf_counter() - start
        row = "  ".join(f"{s:6.2f}" for s in scores)
        print(f"{setting}: {row}  sum {sum(scores):.2f}  {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
