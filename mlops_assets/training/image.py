"""Images as tensors: a cache that is decoded once, batches of it, and the classifier that augments and normalises them.

Belongs here: what every image system shares. Does not belong here: what labels mean, architectures, decoding a file (`images.py`).
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mlops_assets.lifecycle.system import CleanedTable

#: Of the pixels of ImageNet, in 0..1 by channel: what pretrained weights were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Brightness and contrast vary by this share.
LIGHT = 0.1
#: Rows that are read at once: 64 photos are some megabytes.
READ_ROWS = 64


# --- rows -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The rows of one split without their images, sorted by id. `ids` are the SHA-256 of the images."""

    ids: list[str]
    labels: np.ndarray
    groups: list[str]
    paths: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def sha256(self) -> str:
        """Of all rows, with their labels."""
        digest = hashlib.sha256()
        for name, label in zip(self.ids, self.labels.tolist(), strict=True):
            digest.update(f"{name} {label}\n".encode())
        return digest.hexdigest()


def read_rows(table: CleanedTable, split: str, rate: float = 1.0) -> Rows:
    """The rows of `split`, or about `rate` of them, chosen by id: the same photo is in or out in every version."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    columns = ["id", "label", "group", "path"]
    found = ds.dataset(table.folder, format="parquet").to_table(columns=columns, filter=pc.field("split") == split)
    rows = [row for row in found.sort_by("id").to_pylist() if rate >= 1 or _share_of(row["id"]) < rate]
    labels = np.array([row["label"] for row in rows], np.int64)
    return Rows([row["id"] for row in rows], labels, [row["group"] for row in rows], [row["path"] for row in rows])


def _share_of(name: str) -> float:
    """A number from 0 to 1 that depends on the id alone. Hashed again: the id may have served another choice already."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def read_images(table: CleanedTable, split: str) -> Iterator[list[tuple[str, bytes]]]:
    """(id, encoded image) of the rows of `split`, a few at a time, in the table's own order."""
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    rows = ds.dataset(table.folder, format="parquet")
    for batch in rows.to_batches(columns=["id", "image"], filter=pc.field("split") == split, batch_size=READ_ROWS, batch_readahead=1):
        yield list(zip(batch.column("id").to_pylist(), batch.column("image").to_pylist(), strict=True))


# --- decoded once ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageCache:
    """The decoded images of some rows.

    Attributes:
        images: uint8 [rows, size, size, 3], RGB, mapped from a file: only what is touched is in memory.
    """

    rows: Rows
    images: np.ndarray

    @classmethod
    def build(cls, table: CleanedTable, split: str, size: int, folder: Path, *, rate: float = 1.0, threads: int = 2) -> ImageCache:
        """Decode the rows of `split` into a file of `folder`, or take the file that an earlier training left there.

        Whatever the file's name promises is in it: it is written aside, synced and renamed. One file a split is kept.

        Raises:
            BadImage: an image cannot be decoded (cleaning lets none of those in).
        """
        rows = read_rows(table, split, rate)
        if not len(rows):
            return cls(rows, np.empty((0, size, size, 3), np.uint8))
        folder.mkdir(parents=True, exist_ok=True)
        final = folder / f"{split}-{_content(rows, size)}.npy"
        if not final.exists():
            for old in (*folder.glob(f"{split}-*.npy"), *folder.glob(f".aside-{split}-*")):
                old.unlink()
            aside = folder / f".aside-{final.name}"
            _decode(table, split, rows, size, aside, threads)
            os.rename(aside, final)
        os.utime(final)  # in use: only what nobody needs for long is removed
        return cls(rows, np.load(final, mmap_mode="r"))


def _content(rows: Rows, size: int) -> str:
    """Names what is in a cache: the images, their order, and how they were decoded."""
    from mlops_assets import images
    from mlops_assets.sources import code_version

    digest = hashlib.sha256("\n".join([str(size), *rows.ids]).encode())
    digest.update(code_version(images.__name__).encode())
    return digest.hexdigest()[:16]


def _decode(table: CleanedTable, split: str, rows: Rows, size: int, target: Path, threads: int) -> None:
    from mlops_assets.images import to_array

    places = {name: place for place, name in enumerate(rows.ids)}
    decoded = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=(len(rows), size, size, 3))

    def one(place: int, data: bytes) -> None:
        decoded[place] = to_array(data, size)

    with ThreadPoolExecutor(threads) as pool:  # Pillow lets go of the interpreter while it decodes
        for batch in read_images(table, split):
            wanted = [(places[name], data) for name, data in batch if name in places]
            for done in [pool.submit(one, place, data) for place, data in wanted]:
                done.result()
    decoded.flush()
    with target.open("rb") as file:
        os.fsync(file.fileno())


class ImageExamples:
    """A cache as what `trainer.fit` reads. Images are of one size, so there is nothing to sort by."""

    lengths = None

    def __init__(self, cache: ImageCache) -> None:
        self.cache = cache

    def __len__(self) -> int:
        return len(self.cache.rows)

    def batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """`images` uint8 [rows, size, size, 3] and `labels` int64 [rows], as they are: augmenting is the classifier's."""
        import torch

        chosen = np.asarray(rows)
        return {"images": torch.from_numpy(self.cache.images[chosen]), "labels": torch.from_numpy(self.cache.rows.labels[chosen])}


# --- the classifier -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessing:
    """What a network is shown. The defaults are the team's transforms.

    Attributes:
        rotation: in training, a photo is turned by up to so many degrees either way.
        mirror_vertical: in training, it is mirrored upside down as well as left to right: for what has no upper side.
        standardize: every photo, also in production, gets mean 0 and deviation 1 of its own instead of ImageNet's: how long and under
            what lamp it was exposed then says nothing.
    """

    rotation: float = 30.0
    mirror_vertical: bool = False
    standardize: bool = False


def augment(images: Tensor, how: Preprocessing) -> Tensor:
    """uint8 [batch, 3, height, width] -> float32. Each is mirrored or not, turned, and lighter or darker.

    From torch's random state. The team's `ColorJitter()` has every range at 0 and changes nothing; LIGHT is what light varies by. The whole
    batch is sampled at once: image by image, torchvision's transforms take longer than a small network's whole step.
    """
    import torch
    from torch.nn.functional import affine_grid, grid_sample

    count = len(images)
    angle = (2 * torch.rand(count) - 1) * math.radians(how.rotation)
    mirror, flip = (2.0 * torch.randint(0, 2, (2, count)) - 1).unbind(0)
    flip = flip if how.mirror_vertical else torch.ones(count)
    ratio = images.shape[2] / images.shape[3]  # coordinates are -1..1 on both axes: without it a turn would shear what is not square
    rows = [angle.cos() * mirror, -angle.sin() * flip * ratio, angle.sin() * mirror / ratio, angle.cos() * flip]
    still = torch.zeros(count)
    turn = torch.stack([rows[0], rows[1], still, rows[2], rows[3], still], 1).view(count, 2, 3)
    grid = affine_grid(turn.to(images.device), list(images.shape), align_corners=False)
    shown = grid_sample(images.float(), grid, align_corners=False)
    contrast, light = (1 + LIGHT * (2 * torch.rand(2, count, 1, 1, 1) - 1)).to(images.device).unbind(0)
    mean = shown.mean(dim=(1, 2, 3), keepdim=True)
    return (((shown - mean) * contrast + mean) * light).clamp(0, 255)


def classifier(net: nn.Module, preprocessing: Preprocessing | None = None, label_smoothing: float = 0.0) -> nn.Module:
    """`net` as `training/trainer.py` wants it: a batch of `ImageExamples` in, `loss` and `logits` out."""
    made: nn.Module = _classifier_class()(net, preprocessing or Preprocessing(), label_smoothing)
    return made


@functools.cache
def _classifier_class() -> type[Any]:
    """Defined on first use: loading definitions must not import torch."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy

    class Classifier(nn.Module):
        """A network behind its preprocessing: uint8 [batch, height, width, 3] -> logits, augmented only while it trains.

        Augmenting happens here and not in the data set: here it comes from the random state that checkpoints restore.
        """

        mean: Tensor
        std: Tensor

        def __init__(self, net: nn.Module, preprocessing: Preprocessing, label_smoothing: float) -> None:
            super().__init__()
            self.net, self.preprocessing, self.label_smoothing = net, preprocessing, label_smoothing
            for name, values in (("mean", MEAN), ("std", STD)):
                self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1), persistent=False)

        def forward(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            shown = images.permute(0, 3, 1, 2)
            if self.training and labels is not None:
                shown = augment(shown, self.preprocessing)
            logits = self.net(self._normalized(shown.float()))
            if labels is None:
                return {"logits": logits}
            return {"logits": logits, "loss": cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)}

        def _normalized(self, shown: Tensor) -> Tensor:
            if not self.preprocessing.standardize:
                return (shown - self.mean) / self.std
            shown = shown - shown.mean(dim=(1, 2, 3), keepdim=True)
            deviation = shown.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
            return shown / deviation.clamp(min=1.0)  # of 255: an empty photo stays empty, its noise is not blown up

    return Classifier
