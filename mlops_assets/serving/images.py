"""The one predictor for image classification: evaluation, server, CLI and Python callers all run a bundle through this class.

Belongs here: limits of a request, base64, batches, ONNX Runtime, calibration. Does not belong here: decoding (`mlops_assets/images.py`),
HTTP, which bundle is served (`models.py`).
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mlops_assets import strokes
from mlops_assets.images import DEFAULT, BadImage, check_size, load, to_array
from mlops_assets.kinds.text.predict import BadInput, open_session, softmax
from mlops_assets.lifecycle.bundle import BadBundle

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from PIL.Image import Image

KIND = "image-classification"
#: Most pictures of one HTTP request, and most bytes of its body.
MAX_IMAGES = 32
MAX_BODY_BYTES = 64 * 1024**2
#: Pictures that go through the graph together: activations of a large network at 256 x 256 take tens of megabytes each.
BATCH_IMAGES = 8
#: What `bundle.json` may say of how a picture becomes what the model sees: a photo is resized, strokes are made even (`strokes.py`).
RESIZED, STROKES = "resized", "strokes"


_DATA_URL = re.compile(r"\s*data:[\w.+/-]{0,80};base64,")


class Picture(NamedTuple):
    """An input that knows where it stood in its request: rounds of the engine cut requests in pieces, errors must name the right file."""

    data: bytes | str
    """Encoded bytes, or base64 of them, also as a data URL."""
    field: str
    file: str | None = None


class ImagePredictor:
    """A loaded bundle of kind `image-classification`. Safe to call from several threads; one caller at a time is fastest.

    Attributes:
        labels: class names in the order of the logits.
        temperature: calibration; logits are divided by it before softmax.
        size: width and height that the model reads; pictures are resized to it.
        preprocessing: RESIZED, or STROKES: a grey model of one drawn digit.
        ask_below: the confidence below which an answer is not sure; None: the bundle does not say.
    """

    kind = KIND
    max_body_bytes = MAX_BODY_BYTES

    def __init__(self, session: InferenceSession, spec: dict[str, Any]) -> None:
        self.labels: list[str] = list(spec["labels"])
        self.system: str = spec["system"]
        self.size = int(spec["image_size"])
        self.temperature = float(spec.get("calibration", {}).get("temperature", 1.0))
        self.preprocessing: str = spec.get("preprocessing", RESIZED)
        self.ask_below: float | None = spec.get("ask_below")
        self._session = session

    @property
    def one_at_a_time(self) -> bool:
        """Of a small network on strokes most of the work is preparing them, in Python."""
        return self.preprocessing == STROKES

    @property
    def secret_answers(self) -> bool:
        """Whether what is said must not be recorded: digits that strokes are read as are those of one-time codes."""
        return self.preprocessing == STROKES

    def canonical_label(self, truth: Any) -> str | None:
        return truth if truth in self.labels else None

    def check(self, inputs: Sequence[Any]) -> None:
        """The limits of one request that need no decoding. Raises BadInput: `too_many`, `not_base64`,
        `not_image_data`, `empty_file`, `too_large_file`."""
        check_count(len(inputs))
        for number, one in enumerate(inputs):
            picture = _picture(one, number)
            size = len(picture.data) if isinstance(picture.data, bytes) else len(picture.data) * 3 // 4 - 2
            if not picture.data or size > DEFAULT.max_bytes:
                _bytes(picture)  # says which; base64 is decoded here only to be refused

    def predict_logits(self, inputs: Sequence[Any]) -> np.ndarray:
        """float32 [len(inputs), len(labels)], in order, before calibration. Raises BadInput."""
        pictures = [_picture(one, number) for number, one in enumerate(inputs)]
        logits = np.empty((len(pictures), len(self.labels)), np.float32)
        for start in range(0, len(pictures), BATCH_IMAGES):
            batch = np.stack([self._pixels(picture) for picture in pictures[start : start + BATCH_IMAGES]])
            logits[start : start + len(batch)] = self.logits_of(batch)
        return logits

    def logits_of(self, images: np.ndarray) -> np.ndarray:
        """float32 [batch, labels] of uint8 [batch, size, size, 3] RGB, of strokes [batch, size, size]: for callers who have decoded."""
        return np.asarray(self._session.run(["logits"], {"images": images})[0])

    def probabilities(self, inputs: Sequence[Any]) -> np.ndarray:
        """float32 [len(inputs), len(labels)], calibrated. Raises BadInput."""
        return softmax(self.predict_logits(inputs) / self.temperature)

    def predict(self, inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """One `{"label", "confidence", "probs"}` per picture, in order, with `file` where a name came with it and `sure` where the bundle
        says below which confidence to ask.

        Args:
            inputs: encoded bytes, base64 of them, or `Picture`.

        Raises:
            BadInput (a ValueError): a picture that is refused; its code is that of `images.BadImage` or `not_base64`, `not_image_data`.
        """
        answers = []
        for number, row in enumerate(self.probabilities(inputs).tolist() if inputs else []):
            best = max(range(len(row)), key=row.__getitem__)
            name = _picture(inputs[number], number).file
            answer: dict[str, Any] = {"label": self.labels[best], "confidence": row[best]}
            if self.ask_below is not None:
                answer["sure"] = row[best] >= self.ask_below
            answer["probs"] = dict(zip(self.labels, row, strict=True))
            answers.append(answer if name is None else {"file": name} | answer)
        return answers

    def _pixels(self, picture: Picture) -> np.ndarray:
        try:
            data = _bytes(picture)
            return strokes.prepared(load(data)) if self.preprocessing == STROKES else to_array(data, self.size)
        except BadImage as error:
            raise _refused(error, picture) from None


def segments(predictor: Any, inputs: Sequence[Any], length: int) -> list[Picture]:
    """The digits of a code written in one picture, left to right, each a picture of its own.

    Raises:
        BadInput: `no_codes`: this model reads no strokes; `one_picture`, `bad_length`, `cannot_segment`, or what is wrong with the picture.
    """
    if getattr(predictor, "preprocessing", RESIZED) != STROKES:
        raise BadInput(
            "no_codes", f"{predictor.system} reads no codes", "코드를 읽는 모델이 아닙니다.", field="length", fix="Leave `length` out."
        )
    if len(inputs) != 1:
        message, fix = f"{len(inputs)} pictures with `length`, it wants one of the whole code", "Send one picture, or leave `length` out."
        raise BadInput("one_picture", message, "코드 전체를 담은 그림 하나만 보내세요.", field="files", limit=1, fix=fix)
    if not 1 <= length <= strokes.MOST_DIGITS:
        message, most = f"`length` is not between 1 and {strokes.MOST_DIGITS}", strokes.MOST_DIGITS
        korean = f"length는 1에서 {most} 사이여야 합니다."
        raise BadInput("bad_length", message, korean, field="length", limit=most, fix="Use ?length=6.")
    whole = _picture(inputs[0], 0)
    try:
        found = strokes.segmented(load(_bytes(whole)), length)
    except BadImage as error:
        raise _refused(error, whole) from None
    return [Picture(_png(digit), f"{whole.field} digit {number}") for number, digit in enumerate(found, start=1)]


def _png(picture: Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=1)
    return out.getvalue()


def check_count(count: int, field: str = "inputs") -> None:
    if count > MAX_IMAGES:
        message = f"{count} pictures in one request, at most {MAX_IMAGES}"
        korean = f"한 번에 이미지 {MAX_IMAGES}개까지 보낼 수 있습니다."
        fix = f"Send {MAX_IMAGES} pictures or fewer per request."
        raise BadInput("too_many", message, korean, field=field, limit=MAX_IMAGES, fix=fix)


def _picture(one: Any, number: int) -> Picture:
    if isinstance(one, Picture):
        return one
    field = f"inputs[{number}]"
    if not isinstance(one, bytes | str):
        message, fix = f"{field} is {type(one).__name__}, not a picture", "Send base64 of image files, or multipart `files`."
        raise BadInput("not_image_data", message, f"{field}: 이미지가 아닙니다.", field=field, fix=fix)
    return Picture(one, field)


def _bytes(picture: Picture) -> bytes:
    """The encoded bytes, within their limits. Raises BadInput."""
    data = picture.data
    if isinstance(data, str):
        try:
            # What a page's canvas gives: data:image/png;base64,...
            data = base64.b64decode(_DATA_URL.sub("", data, count=1), validate=True)
        except (binascii.Error, ValueError) as error:
            message, fix = (
                f"{picture.field} is not base64: {error}",
                "Send the file's bytes in base64, or the file itself as multipart `files`.",
            )
            raise BadInput("not_base64", message, f"{picture.field}: base64가 아닙니다.", field=picture.field, fix=fix) from None
    try:
        check_size(data)
    except BadImage as error:
        raise _refused(error, picture) from None
    return data


def _refused(error: BadImage, picture: Picture) -> BadInput:
    where = picture.field if picture.file is None else f"{picture.field} ({picture.file[:100]})"
    korean = f"{where}: {error.message_ko}"
    return BadInput(error.code, f"{where}: {error.message}", korean, field=picture.field, limit=error.limit, fix=error.fix)


def load_image_predictor(folder: Path, threads: int) -> ImagePredictor:
    """The predictor of a bundle folder (`bundle.json`, `model.onnx`). The folder's digest is the caller's to check.

    Raises:
        ValueError: another kind or format of bundle, or a model whose inputs and outputs are not those of one.
        BadBundle: `wrong_labels`: not as many labels as logits.
    """
    spec = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    _check_spec(spec)
    # A network of digits is so small that several threads would wait for each other longer than they work.
    session = open_session(folder / "model.onnx", 1 if spec.get("preprocessing") == STROKES else threads)
    inputs = {i.name: i.type for i in session.get_inputs()}
    outputs = {o.name: o.shape for o in session.get_outputs()}
    if inputs != {"images": "tensor(uint8)"} or "logits" not in outputs:
        raise ValueError(f"model.onnx takes {inputs} and gives {sorted(outputs)}, not uint8 images and logits")
    width = outputs["logits"][-1]
    if isinstance(width, int) and width != len(spec["labels"]):
        raise BadBundle("wrong_labels", f"model.onnx gives {width} logits, bundle.json names {len(spec['labels'])} labels")
    return ImagePredictor(session, spec)


def _check_spec(spec: dict[str, Any]) -> None:
    """Raises ValueError for the first setting of `bundle.json` that cannot be."""
    if (spec.get("format"), spec.get("kind")) != (1, KIND):
        raise ValueError(f"the bundle has format {spec.get('format')!r}, kind {spec.get('kind')!r}: this reads format 1, {KIND}")
    temperature = float(spec.get("calibration", {}).get("temperature", 1.0))
    if not 0 < temperature < float("inf"):
        raise ValueError(f"calibration temperature {temperature} is not a positive number")
    if not 8 <= int(spec["image_size"]) <= 2048:
        raise ValueError(f"image_size {spec['image_size']} is not between 8 and 2048")
    how = spec.get("preprocessing", RESIZED)
    if how not in (RESIZED, STROKES):
        raise ValueError(f"preprocessing {how!r}: this server knows {RESIZED} and {STROKES}")
    if how == STROKES and int(spec["image_size"]) != strokes.SIDE:
        raise ValueError(f"image_size {spec['image_size']}: strokes are {strokes.SIDE} pixels")
    if (ask := spec.get("ask_below")) is not None and not 0 <= float(ask) <= 1:
        raise ValueError(f"ask_below {ask} is not between 0 and 1")
