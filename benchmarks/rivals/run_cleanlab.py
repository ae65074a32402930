"""Score labels by cleanlab: for every N.npz (labels, probabilities) in a folder an N-scores.npz, high = wrong."""

import sys
from pathlib import Path

import numpy as np
from cleanlab.rank import get_label_quality_scores

METHODS = {"self_confidence": False, "normalized_margin": False, "normalized_margin, adjusted": True}


def main(folder: Path) -> None:
    for path in sorted(folder.glob("*.npz")):
        if path.stem.endswith("-scores"):
            continue
        with np.load(path, allow_pickle=False) as kept:
            labels, probabilities = kept["labels"], kept["probabilities"]
        found = {}
        for name, adjusted in METHODS.items():
            scores = get_label_quality_scores(
                labels, probabilities, method=name.partition(",")[0], adjust_pred_probs=adjusted
            )
            found[name] = 1 - np.asarray(scores, dtype=np.float64)
        np.savez(path.with_name(f"{path.stem}-scores.npz"), **found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
