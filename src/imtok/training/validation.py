"""Validation of a tokenizer during training: previews, and scores on held-out pictures."""

from pathlib import Path

import torch
from torch import Tensor

from imtok.config import ConfigError
from imtok.data.loader import Batch, fixed_batches
from imtok.data.pictures import to_uint8
from imtok.data.sample import Dataset
from imtok.evaluation.metrics import codebook_perplexity, codebook_usage, psnr, ssim
from imtok.evaluation.sets import MIN_SIDE
from imtok.layers.model import in_eval_mode
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.text import Text, TextConditioner
from imtok.training.data_modules import evaluation_batch_size
from imtok.training.previews import PREVIEW_PICTURES, write_preview
from imtok.training.run import RunConfig


class Validation:
    """Previews and scores of a tokenizer, always on the same centre crops.

    Args:
        config: config of the run.
        data: held-out pictures, or the training pictures if there are none.
        held_out: whether the pictures are held out, so that scores on them are meaningful.
        text_conditioner: encodes the text for a tokenizer that is conditioned on it.

    Raises:
        ConfigError: none of the pictures can be read, or they are too small to be scored.
    """

    def __init__(
        self, config: RunConfig, data: Dataset, held_out: bool, text_conditioner: TextConditioner | None = None
    ) -> None:
        if next(fixed_batches(data, config.data, count=1, batch_size=1), None) is None:
            raise ConfigError(f"none of the {len(data)} pictures to look at while training can be read")
        if held_out and (side := config.data.crop.resolution) < MIN_SIDE:
            raise ConfigError(f"validation: pictures of {side} px cannot be scored; SSIM needs {MIN_SIDE} or more")
        self.config, self.data, self.held_out, self.text_conditioner = config, data, held_out, text_conditioner

    @torch.no_grad()
    def evaluate(self, tokenizer: Tokenizer, device: torch.device) -> dict[str, float]:
        """Return PSNR, SSIM, and the usage and perplexity of each codebook."""
        scores, codes = [], []
        settings = self.config.training
        size = evaluation_batch_size(settings)
        batches = fixed_batches(self.data, self.config.data, count=settings.evaluation_pictures, batch_size=size)
        with in_eval_mode(tokenizer):
            for batch in batches:
                images = batch.images.to(device)
                text = self._text(batch)
                encoding = tokenizer.encode(images, text)
                decoded = tokenizer.decode(encoding.latents, text, encoding.grid_size)
                original, reconstruction = _pixels(images), _pixels(decoded)
                scores.append(torch.stack([psnr(original, reconstruction), ssim(original, reconstruction)]))
                if encoding.codes is not None:
                    codes.append(encoding.codes.cpu())
        means = torch.cat(scores, dim=1).mean(1)
        numbers = {"psnr": means[0].item(), "ssim": means[1].item()}
        if codes:
            usage = codebook_usage(torch.cat(codes), tokenizer.codebook_sizes)
            perplexity = codebook_perplexity(torch.cat(codes), tokenizer.codebook_sizes)
            for index, (used, effective) in enumerate(zip(usage, perplexity, strict=True)):
                numbers |= {f"codebook_usage_{index}": used, f"codebook_perplexity_{index}": effective}
        return numbers

    def preview(self, tokenizer: Tokenizer, folder: Path, step: int, device: torch.device) -> Path:
        """Write originals above their reconstructions, as RUN/previews/step-00001234.png."""
        batches = fixed_batches(self.data, self.config.data, count=PREVIEW_PICTURES, batch_size=PREVIEW_PICTURES)
        batch = next(batches)
        images = batch.images.to(device)
        with in_eval_mode(tokenizer):
            reconstructions = tokenizer.reconstruct(images, self._text(batch))
        return write_preview([images, reconstructions], folder, step)

    def _text(self, batch: Batch) -> Text | None:
        return (
            None if self.text_conditioner is None else self.text_conditioner.encode_batch(batch.captions, batch.labels)
        )


def _pixels(images: Tensor) -> Tensor:
    return torch.from_numpy(to_uint8(images)).movedim(-1, -3)
