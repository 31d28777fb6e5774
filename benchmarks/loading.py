"""Measure how many pictures per second the training loader prepares on one core.

python benchmarks/loading.py SHARDS [--resolution 128] [--pictures 2000]
"""

import math
import time

import torch
import tyro

from imtok.data.loader import DataConfig, Loader
from imtok.data.transforms import CropConfig


def main(shards: tyro.conf.Positional[str], resolution: int = 128, pictures: int = 2000, zoom: bool = True) -> None:
    """Time the loader, after one untimed batch that opens the shards.

    Args:
        shards: folder of shards, as written by `imtok annotate` or `imtok synthesize`.
        resolution: side of the crops in pixels.
        pictures: least number of pictures, rounded up to batches of 16.
        zoom: zoom in on words, so that they are 24 to 48 pixels high.
    """
    torch.set_num_threads(1)
    crop = CropConfig(resolution=resolution, word_height=(24.0, 48.0) if zoom else None)
    loader = Loader(shards, DataConfig(crop=crop), batch_size=16)
    loader.batch(0)
    batches = math.ceil(pictures / 16)
    started = time.process_time()
    for step in range(1, 1 + batches):
        loader.batch(step)
    print(f"{16 * batches / (time.process_time() - started):.0f} pictures a second of one core at {resolution} px")


if __name__ == "__main__":
    tyro.cli(main)
