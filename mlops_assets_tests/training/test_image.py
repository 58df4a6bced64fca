"""Photos are decoded once and stay what they were; only training changes them, each on its own, from the random state alone."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mlops_assets.images import to_array
from mlops_assets.lifecycle.system import CleanedTable
from mlops_assets.training import image

SIZE = 16
TURNED = image.Preprocessing()


def make_table(folder: Path, splits: dict[str, int], seed: int = 0) -> CleanedTable:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    random, rows = np.random.default_rng(seed), []
    for split, count in splits.items():
        for i in range(count):
            out = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(out, "PNG")
            data = out.getvalue()
            name = hashlib.sha256(data).hexdigest()
            rows.append({"id": name, "image": data, "label": i % 2, "group": f"g{i // 2}", "split": split, "path": f"{i}.png"})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "shard-00000.parquet", row_group_size=7)
    return CleanedTable("tires", "v1", "0" * 64, folder, len(rows))


@pytest.fixture
def table(tmp_path: Path) -> CleanedTable:
    return make_table(tmp_path / "table", {"train": 80, "validation": 10})


@pytest.fixture
def cache(table: CleanedTable, tmp_path: Path) -> image.ImageCache:
    return image.ImageCache.build(table, "train", SIZE, tmp_path / "cache")


def test_each_row_has_its_own_image_and_label(table: CleanedTable, cache: image.ImageCache) -> None:
    photos = {name: data for batch in image.read_images(table, "train") for name, data in batch}
    assert cache.images.shape == (80, SIZE, SIZE, 3) and cache.rows.ids == sorted(photos)
    examples = image.ImageExamples(cache)
    chosen = [5, 79, 0]
    batch = examples.batch(chosen)
    assert (len(examples), examples.lengths) == (80, None)
    assert batch["images"].dtype == torch.uint8 and batch["labels"].tolist() == cache.rows.labels[chosen].tolist()
    for row, shown in zip(chosen, batch["images"].numpy(), strict=True):
        assert np.array_equal(shown, to_array(photos[cache.rows.ids[row]], SIZE))


def test_a_cache_is_built_once(table: CleanedTable, cache: image.ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr("mlops_assets.images.to_array", never)
    (file,) = (tmp_path / "cache").iterdir()
    os.utime(file, times=(0, 0))
    again = image.ImageCache.build(table, "train", SIZE, tmp_path / "cache")
    assert np.array_equal(again.images, cache.images)
    assert file.stat().st_mtime > 0, "a cache in use must not look abandoned"
    with pytest.raises(AssertionError, match="decoded again"):  # a control: another size is another cache
        image.ImageCache.build(table, "train", SIZE + 1, tmp_path / "cache")


def test_other_rows_are_another_cache_and_the_old_one_goes(table: CleanedTable, cache: image.ImageCache, tmp_path: Path) -> None:
    image.ImageCache.build(table, "validation", SIZE, tmp_path / "cache")
    other = image.ImageCache.build(make_table(tmp_path / "other", {"train": 9}, seed=1), "train", SIZE, tmp_path / "cache")
    assert len(other.rows) == 9 and set(other.rows.ids).isdisjoint(cache.rows.ids)
    assert sorted(path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()) == ["train", "validation"]
    assert cache.images[0].any(), "who still reads the old one may"


def test_what_a_killed_build_left_is_not_taken(table: CleanedTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.rename", killed)
        with pytest.raises(KeyboardInterrupt):
            image.ImageCache.build(table, "train", SIZE, tmp_path / "cache")
    assert [path.name.startswith(".aside-") for path in (tmp_path / "cache").iterdir()] == [True]
    image.ImageCache.build(table, "train", SIZE, tmp_path / "cache")
    assert [path.name.startswith("train-") for path in (tmp_path / "cache").iterdir()] == [True]


def test_sampling_keeps_the_same_photos_in_every_version(tmp_path: Path) -> None:
    few, more = (make_table(tmp_path / str(count), {"train": count}) for count in (200, 300))
    half = image.read_rows(few, "train", 0.5)
    known = set(image.read_rows(few, "train").ids)
    assert 70 < len(half) < 130
    assert [name for name in image.read_rows(more, "train", 0.5).ids if name in known] == half.ids


def test_only_training_changes_photos(cache: image.ImageCache) -> None:
    seen: list[torch.Tensor] = []

    class Net(torch.nn.Module):
        def forward(self, shown: torch.Tensor) -> torch.Tensor:
            seen.append(shown)
            return shown.mean(dim=(2, 3))[:, :2]

    batch = image.ImageExamples(cache).batch(range(8))
    model = image.classifier(Net())
    with torch.inference_mode():
        model.eval()(batch["images"])
        model(**batch)
        model.train()(**batch)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (image.MEAN, image.STD))
    plain = (batch["images"].permute(0, 3, 1, 2) / 255 - mean) / std
    assert torch.allclose(seen[0], plain, atol=1e-5) and seen[0].equal(seen[1])
    assert all(not torch.allclose(seen[2][i], plain[i], atol=0.1) for i in range(8))


def test_each_photo_is_changed_on_its_own_and_from_the_random_state_alone() -> None:
    same = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(6, -1, -1, -1)
    torch.manual_seed(1)
    first = image.augment(same, TURNED)
    second = image.augment(same, TURNED)
    torch.manual_seed(1)
    assert image.augment(same, TURNED).equal(first) and not second.equal(first)
    assert first.dtype == torch.float32 and len({shown.numpy().tobytes() for shown in first}) == 6


def test_a_turned_photo_keeps_its_shapes_and_its_place() -> None:
    """A bar in a wide photo stays as thick and as long, whatever way it is turned."""
    wide = torch.zeros(64, 3, 40, 80, dtype=torch.uint8)
    wide[:, :, 18:22, 30:50] = 200
    torch.manual_seed(0)
    area = (image.augment(wide, TURNED)[:, 0] > 90).sum(dim=(1, 2)).float()
    assert ((area - 80).abs() < 20).all(), "neither sheared nor moved out of the photo"


def test_a_photo_is_mirrored_upside_down_only_where_that_is_asked_for() -> None:
    """Bright above, dark below: without turning, only a vertical mirror changes that."""
    above = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    above[:, :, :8] = 200
    torch.manual_seed(0)
    kept = image.augment(above, image.Preprocessing(rotation=0))
    both = image.augment(above, image.Preprocessing(rotation=0, mirror_vertical=True))
    assert (kept[:, 0, :8].mean(dim=(1, 2)) > kept[:, 0, 8:].mean(dim=(1, 2))).all()
    turned = both[:, 0, :8].mean(dim=(1, 2)) < both[:, 0, 8:].mean(dim=(1, 2))
    assert 16 < int(turned.sum()) < 48


@pytest.mark.parametrize("standardize", [True, False])
def test_a_standardized_photo_is_the_same_in_any_light(standardize: bool) -> None:
    """Two exposures of one scene; without standardizing (the control) the network sees two scenes. An empty photo gives no infinity."""
    model = image.classifier(torch.nn.Flatten(), image.Preprocessing(standardize=standardize)).eval()
    scene = torch.randint(40, 80, (1, 16, 16, 3), dtype=torch.uint8)
    with torch.inference_mode():
        dark, bright = model(scene)["logits"], model(2 * scene + 20)["logits"]
        empty = model(torch.full_like(scene, 7))["logits"]
    assert torch.allclose(dark, bright, atol=1e-4) == standardize
    assert torch.isfinite(empty).all()
