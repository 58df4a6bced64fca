"""What is no example: known by place and name, and by the kind of picture; photos that only resemble one stay."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from mlops_assets.ingest.examples import Looks, by_name, by_place, is_small_copy, look, sheets_among
from mlops_assets.ingest.likeness import difference_hash

LABELS = {"good", "defective", "without mask"}


def photo(number: int, width: int = 160, height: int = 120) -> Image.Image:
    """Coarse forms and fine grain, unlike any other number's."""
    rng = np.random.default_rng(number)
    forms = Image.fromarray(rng.integers(30, 220, (6, 8, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 60, (height, width, 1))
    return Image.fromarray((np.asarray(forms) + grain).clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1.5))


def jpeg(picture: Image.Image, quality: int = 85) -> Image.Image:
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return Image.open(io.BytesIO(out.getvalue())).convert("RGB")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("ground_truth/defective/000_mask.png", "mask"),
        ("GroundTruth/defective/000.png", "mask"),
        ("defective/masks/000.png", "mask"),
        ("Masks\\000.png", "mask"),
        ("train_masks/good/1.png", "mask"),
        ("gt/good/1.png", "mask"),
        ("SegmentationClass/1.png", "mask"),
        ("annotations/good/1.png", "mask"),
        ("good/.thumbnails/1.jpg", "thumbnail"),
        ("thumbs/good/1.jpg", "thumbnail"),
        ("good/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg", "thumbnail"),
        ("good/contact_sheet.jpg", "contact_sheet"),
        ("contact-sheets/good/1.jpg", "contact_sheet"),
        ("good/ContactSheet-002.png", "contact_sheet"),
        ("__MACOSX/good/._1.jpg", "system_file"),
        ("good/._1.jpg", "system_file"),
        ("good/.ipynb_checkpoints/1-checkpoint.jpg", "system_file"),
        ("good/1.jpg", None),
        ("without mask/1.jpg", None),  # a label of the configuration
        ("no_mask/good/1.jpg", None),
        ("mask_rcnn_data/good/1.jpg", None),
        ("Hankook GT/good/1.jpg", None),
        ("damask/good/1.jpg", None),
        ("good/sheet_metal.jpg", None),
    ],
)
def test_place(path: str, code: str | None) -> None:
    assert by_place(path, LABELS) == code


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a/000_mask.png", ("mask", "000")),
        ("a/000-gt.png", ("mask", "000")),
        ("a/000.mask.png", ("mask", "000")),
        ("a/000_ground_truth.png", ("mask", "000")),
        ("a/Part0_label.bmp", ("mask", "part0")),
        ("a/mask_000.png", ("mask", "000")),
        ("a/000_mask_2.png", ("mask", "000")),
        ("a/000_thumb.jpg", ("thumbnail", "000")),
        ("a/tn_000.jpg", ("thumbnail", "000")),
        ("a/000-150x150.jpg", ("thumbnail", "000")),
        ("a/999_mask.png", None),  # of no photo here
        ("a/000.jpg", None),
        ("a/000_2.jpg", None),
        ("a/000bitumask.jpg", None),
    ],
)
def test_name_beside_that_of_a_photo(path: str, found: tuple[str, str] | None) -> None:
    assert by_name(path, {"000", "part0"}) == found


def test_masks_are_flat_and_photos_are_not() -> None:
    mask = Image.new("L", (160, 120))
    ImageDraw.Draw(mask).ellipse((30, 20, 90, 80), fill=255)
    classes = Image.new("RGB", (160, 120))
    ImageDraw.Draw(classes).rectangle((30, 20, 90, 80), fill=(128, 0, 0))
    masks = [
        mask.convert("RGB"),
        jpeg(mask.convert("RGB"), 95),
        Image.new("RGB", (160, 120)),
        classes,
        mask.point(lambda v: v // 255).convert("RGB"),
    ]
    assert all(look(picture).flat for picture in masks)
    dark = Image.fromarray(np.random.default_rng(0).integers(0, 12, (120, 160, 3), np.uint8))
    drawing = Image.new("RGB", (160, 120), "white")
    drawing.paste(photo(1, 100, 80), (30, 20))  # a thing cut out of its ground
    assert not any(look(picture).flat for picture in (photo(2), dark, drawing))


def sheet(photos: list[Image.Image], columns: int, gap: int, side: int = 96) -> Image.Image:
    rows = -(-len(photos) // columns)
    made = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + gap) + gap), "white")
    for number, one in enumerate(photos):
        made.paste(one.resize((side, side)), (gap + number % columns * (side + gap), gap + number // columns * (side + gap)))
    return jpeg(made)


@pytest.mark.parametrize("gap", [0, 2, 12])
@pytest.mark.parametrize(("columns", "count"), [(2, 4), (4, 12), (5, 18)])
def test_a_sheet_of_photos_of_the_version_is_found(gap: int, columns: int, count: int) -> None:
    photos = {str(number): photo(number) for number in range(30)}
    pictures = photos | {"sheet": sheet([photos[str(number)] for number in range(count)], columns, gap)}
    looks = {key: look(picture) for key, picture in pictures.items()}
    bits = {key: difference_hash(picture) for key, picture in pictures.items()}
    assert set(sheets_among(looks, bits)) == {"sheet"}


def test_a_sheet_of_photos_from_elsewhere_is_known_by_its_even_grid() -> None:
    """Only where it has one: four things that touch may be one photo."""
    framed = look(sheet([photo(100 + number) for number in range(9)], 3, 12))
    assert set(sheets_among({"sheet": framed}, {})) == {"sheet"}
    touching: Looks = look(sheet([photo(100 + number) for number in range(9)], 3, 0))
    assert sheets_among({"sheet": touching}, {}) == {}


@pytest.mark.parametrize("scale", [0.5, 0.3])
@pytest.mark.parametrize("quality", [70, 95])
def test_a_small_copy_is_the_same_in_its_detail_and_a_photo_like_it_is_not(scale: float, quality: int) -> None:
    large = photo(1, 640, 480)
    size = round(640 * scale), round(480 * scale)
    assert is_small_copy(jpeg(large.resize(size, Image.Resampling.LANCZOS), quality), large)
    assert not is_small_copy(large, large) and not is_small_copy(large.resize((600, 450)), large)
    forms = large.filter(ImageFilter.GaussianBlur(6))
    grain = np.random.default_rng(7).normal(0, 8, (size[1], size[0], 1))
    again = Image.fromarray((np.asarray(forms.resize(size)) + grain).clip(0, 255).astype(np.uint8))  # by another camera
    near = np.bitwise_count(difference_hash(again) ^ difference_hash(large)).sum() <= 16
    assert near and not is_small_copy(jpeg(again, quality), large), "control: alike, and no copy"
