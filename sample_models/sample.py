"""Cut the sample that ships with the repository out of Fashion-MNIST: `python -m sample_models.sample --data DIR`.

10,000 images of the training split, 2,000 of the tuning split (which no sample model was trained on) and the whole test
set, all drawn by seed 0 from the splits that `sample_models.train` uses.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from compressor.data.samples import first
from compressor.data.sources import load_data
from compressor.data.splits import SplitName

SIZES = {SplitName.TRAIN: 10_000, SplitName.TUNE: 2_000, SplitName.TEST: 10_000}


def main() -> None:
    """Draw and write `fashion_sample.npz`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "fashion_sample.npz")
    arguments = parser.parse_args()
    data = load_data(arguments.data, root=arguments.data_root)
    arrays = {}
    for split, size in SIZES.items():
        drawn = first(data.split(split), size, seed=0)
        pairs = [drawn[i] for i in range(len(drawn))]
        arrays[f"{split}_images"] = torch.stack([image[0] for image, _ in pairs]).numpy()
        arrays[f"{split}_labels"] = np.array([label for _, label in pairs], dtype=np.uint8)
    np.savez_compressed(arguments.out, **arrays)  # type: ignore[arg-type]  # the stub takes the keywords for a flag


if __name__ == "__main__":
    main()
