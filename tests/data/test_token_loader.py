"""Training batches of tokens: every crop and caption is sampled, and unreadable pictures are skipped."""

from pathlib import Path

import numpy as np
import pytest

from imtok.data.sample import DataError
from imtok.data.token_loader import TokenLoader, fixed_token_batches
from imtok.data.token_shards import TokenManifest, Tokens, TokenShards, TokenWriter

CROPS, CAPTIONS = 10, ["a sign", "a red sign", "OPEN"]


def shards(folder: Path, *, crops: list[int]) -> TokenShards:
    """Write pictures with these numbers of crops; each crop has one code, which encodes picture and crop."""
    manifest = TokenManifest(
        tokenizer="none",
        sha256="0" * 64,
        codebook_sizes=(1000,),
        branch_dims=(1,),
        tokens=1,
        grid_size=(1, 1),
        tokens_on_grid=True,
        resolution=8,
        crops="ten",
        source="none",
        fingerprint="",
        pictures=len(crops),
    )
    writer = TokenWriter(folder, manifest)
    writer.write(
        [
            Tokens(
                values=(100 * row + np.arange(count, dtype=np.int32))[:, None, None],
                path=str(row),
                label=None,
                captions=CAPTIONS,
            )
            for row, count in enumerate(crops)
        ]
    )
    return TokenShards(folder)


def test_samples_every_crop_and_caption_but_no_rows_without_crops(tmp_path: Path) -> None:
    found = shards(tmp_path, crops=[CROPS, 0, CROPS])
    loader = TokenLoader(found, batch_size=3)
    batches = [batch for _, batch in loader.batches(0, 60)]
    codes = {int(code) for batch in batches for code in batch.tokens.flatten()}
    assert codes == {100 * row + crop for row in (0, 2) for crop in range(CROPS)}
    assert {caption for batch in batches for caption in batch.captions} == set(CAPTIONS)
    assert {path for batch in batches for path in batch.paths} == {"0", "2"}
    first = [int(batch.tokens[0]) for batch in batches if batch.paths[0] == "0"]
    assert len(set(first)) > 1  # another crop in another epoch
    (fixed,) = fixed_token_batches(found, count=3, batch_size=3)
    assert [int(code) for code in fixed.tokens.flatten()] == [0, 200]
    assert set(fixed.captions) == {CAPTIONS[0]}


def test_raises_if_no_picture_has_crops(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="none of the pictures could be read when it was encoded"):
        TokenLoader(shards(tmp_path, crops=[0, 0]), batch_size=2).batch(0)
