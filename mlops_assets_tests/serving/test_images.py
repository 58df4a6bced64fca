"""An image system as clients see it: several files, base64, limits, hostile files, and engine rounds that keep the right names."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from sqlalchemy import Engine

from mlops_assets import cli
from mlops_assets.images import to_array
from mlops_assets.kinds.text.predict import BadInput
from mlops_assets.serving.images import BATCH_IMAGES, MAX_BODY_BYTES, MAX_IMAGES, load_image_predictor
from mlops_assets.serving.loading import load
from mlops_assets.settings import Settings
from mlops_assets.store import ObjectStore
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.serving.bundles import brightness_probabilities, make_image_bundle, png
from mlops_assets_tests.serving.running import Running, promote, register_folder, running

SYSTEM = "tires"


@pytest.fixture
def server(engine: Engine, settings: Settings, store: ObjectStore, tmp_path: Path) -> Iterator[Running]:
    world = World(engine, settings, store, SYSTEM, config_of(SYSTEM))
    folder = make_image_bundle(tmp_path / "bundle", system=SYSTEM)
    manual = config_of(SYSTEM, mode="manual")
    promote(world, register_folder(world, folder, manual), manual)
    with running(settings) as found:
        yield found


def send(server: Running, *files: tuple[str, bytes], field: str = "files") -> httpx.Response:
    return server.client.post(f"/predict/{SYSTEM}", files=[(field, file) for file in files])


def test_several_files_are_answered_in_order_with_their_names(server: Running) -> None:
    levels = [0, 250, 100, 30, 200, 10, 60, 90, 120, 150, 180]
    answer = send(server, *[(f"사진 {level}.png", png(level)) for level in levels])
    assert answer.status_code == 200, answer.text
    predictions = answer.json()["predictions"]
    assert [p["file"] for p in predictions] == [f"사진 {level}.png" for level in levels]
    for level, found in zip(levels, predictions, strict=True):
        assert list(found["probs"].values()) == pytest.approx(brightness_probabilities(level), abs=1e-4)
    assert server.models(SYSTEM)["serving"]["model_kind"] == "image-classification"


def test_pictures_are_decoded_on_the_engine_thread(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def decode(data: bytes, size: int) -> np.ndarray:
        threads.append(threading.current_thread().name)
        return to_array(data, size)

    monkeypatch.setattr("mlops_assets.serving.images.to_array", decode)
    assert send(server, ("a.png", png(1)), ("b.png", png(2))).status_code == 200
    assert len(threads) == 2
    assert all(name.startswith("engine") for name in threads)


def test_base64_is_answered_as_the_file_is(server: Running) -> None:
    by_file = send(server, ("a.png", png(77))).json()["predictions"][0]
    by_text = server.predict(base64.b64encode(png(77)).decode(), system=SYSTEM).json()["predictions"][0]
    assert by_text["probs"] == by_file["probs"]


def test_every_error_has_a_code_and_a_fix(server: Running) -> None:
    good = ("a.png", png(1))
    late = [good] * 20 + [("b.jpg", b"text")]  # in a later round of the engine than the first
    whole = {"content-type": "multipart/form-data; boundary=x"}
    cases = [
        (send(server, good, ("b.jpg", b"this is text")), 415, "not_an_image", "files[1]"),
        (send(server, good, ("b.png", b"")), 422, "empty_file", "files[1]"),
        (send(server, good, ("b.png", png(9)[:-30])), 422, "truncated", "files[1]"),
        (send(server, good, ("b.gif", b"GIF89a" + bytes(20))), 415, "bad_format", "files[1]"),
        (send(server, *late), 415, "not_an_image", "files[20]"),
        (send(server, ("a.png", bytes(20 * 1024**2 + 1))), 413, "too_large_file", "files[0]"),
        (send(server, *[good] * (MAX_IMAGES + 1)), 422, "too_many", "files"),
        (send(server, good, field="other"), 400, "no_files", "files"),
        (server.client.post(f"/predict/{SYSTEM}", content=b"nonsense", headers=whole), 400, "bad_multipart", "files"),
        (
            server.client.post(f"/predict/{SYSTEM}", content=b"", headers={"content-type": "multipart/form-data"}),
            400,
            "bad_multipart",
            "files",
        ),
        (server.predict("no base64!", system=SYSTEM), 422, "not_base64", "inputs[0]"),
        (server.client.post(f"/predict/{SYSTEM}", json={"inputs": [1]}), 422, "not_image_data", "inputs[0]"),
        (server.client.post(f"/predict/{SYSTEM}", content=png(3)), 400, "not_utf8", None),
        (send(server, *[("a.png", bytes(MAX_BODY_BYTES // 4 + 1))] * 4), 413, "too_large", None),
    ]
    for answer, status, code, field in cases:
        body = answer.json()
        assert (answer.status_code, body["code"], body["field"]) == (status, code, field)
        assert body["fix"]
        assert any("가" <= letter <= "힣" for letter in body["message_ko"])
    assert send(server, *[good] * MAX_IMAGES).status_code == 200  # the limit itself, after all that


def test_a_part_is_a_file_however_its_client_names_it(server: Running) -> None:
    def part(*headers: str, content: bytes = png(77)) -> httpx.Response:
        lines = [line.encode() for line in headers]
        body = b"\r\n".join([b"--x", *lines, b"", content, b"--x--", b""])
        return server.client.post(f"/predict/{SYSTEM}", content=body, headers={"content-type": "multipart/form-data; boundary=x"})

    disposition = "Content-Disposition: form-data; "
    expected = send(server, ("타이어.png", png(77))).json()["predictions"][0]
    encoded_name = "filename*=UTF-8''%ED%83%80%EC%9D%B4%EC%96%B4.png"
    for said, name in (
        (f'name="files"; {encoded_name}', "타이어.png"),
        (f"name=files; {encoded_name}", "타이어.png"),
        ("name=\"files\"; filename*=iso-8859-1'en'a%22b.png", "a_b.png"),
        ('name="files"; filename*=nonsense\'%ff.png', ""),
        (f'name="files"; filename="a.png"; {encoded_name}', "a.png"),
        ('name="files"; filename=""', ""),
        ('name="files"', ""),
        ("name*=UTF-8''files; filename=a.png", "a.png"),
        ('name="files[]"; filename="a.png"', "a.png"),
        ('name="files[0]"; filename="a.png"', "a.png"),
    ):
        answer = part(disposition + said)
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"] == [{**expected, "file": name}], said
    in_base64 = base64.encodebytes(png(77))
    answer = part(disposition + 'name="files"; filename="a.png"', "Content-Transfer-Encoding: base64", content=in_base64)
    assert answer.json()["predictions"] == [{**expected, "file": "a.png"}]
    charset = server.client.post(
        f"/predict/{SYSTEM}",
        content=b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + png(77) + b"\r\n--x--\r\n",
        headers={"content-type": "multipart/form-data; charset=utf-16; boundary=x"},
    )
    assert charset.status_code == 200, charset.text
    assert part(disposition + 'name="files"; filename=""', content=b"").json()["code"] == "empty_file", "a form without a choice"


@pytest.mark.parametrize("other", ["file", "image", "Datei[]"])
def test_a_file_under_another_name_is_told_the_right_one(server: Running, other: str) -> None:
    """Also beside one that is right: a picture that is sent is never left out without a word."""
    for parts in ([(other, ("a.png", png(1)))], [("files", ("a.png", png(1))), (other, ("b.png", png(2)))]):
        answer = server.client.post(f"/predict/{SYSTEM}", files=parts)
        assert (answer.status_code, answer.json()["code"]) == (400, "no_files")
        assert f"`{other}`" in answer.json()["message"] and "`files`" in answer.json()["fix"]
    token = server.client.post(f"/predict/{SYSTEM}", files=[("files", ("a.png", png(1)))], data={"csrf": "1"})
    assert token.status_code == 200, "a form's other fields are its own"


def test_what_is_sent_instead_of_json_is_said(server: Running) -> None:
    whole = json.dumps({"inputs": [base64.b64encode(png(77)).decode()]})
    multipart = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + png(77) + b"\r\n--x--\r\n"
    for content, status, word in (
        (whole.encode("utf-8-sig"), 200, ""),
        (whole.encode("utf-16"), 400, "UTF-16"),
        (whole.encode("utf-16-le"), 400, "UTF-16"),
        (png(3), 400, "PNG picture itself"),
        (multipart, 400, "its Content-Type does not say multipart/form-data"),
    ):
        for headers in ({}, {"content-type": "application/json; charset=euc-kr"}):
            answer = server.client.post(f"/predict/{SYSTEM}", content=content, headers=headers)
            assert answer.status_code == status, answer.text
            assert word in answer.json().get("message", "") and (status == 200 or "files" in answer.json()["fix"])
    url = "data:image/png;base64," + base64.b64encode(png(77)).decode()
    assert (
        server.predict(url, system=SYSTEM).json()["predictions"] == server.predict(url.split(",")[1], system=SYSTEM).json()["predictions"]
    )


def test_a_picture_of_12_bits_is_answered_as_the_same_of_8(tmp_path: Path) -> None:
    """One decoder for landing, training and HTTP; of the highest byte alone it is black."""
    make_image_bundle(tmp_path)
    predictor = load_image_predictor(tmp_path, 1)
    levels = np.random.default_rng(0).random((64, 64))
    files = []
    for top, kind in ((255, np.uint8), (4095, np.uint16), (65535, np.uint16)):
        out = io.BytesIO()
        Image.fromarray((levels * top).round().astype(kind)).save(out, "PNG")
        files.append(out.getvalue())
    found = predictor.probabilities(files)
    assert np.abs(found - found[0]).max() < 0.01


def test_only_models_of_strokes_read_codes(server: Running) -> None:
    answer = server.client.post(f"/predict/{SYSTEM}", params={"length": 6}, files=[("files", ("a.png", png(1)))])
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == (422, "no_codes", "length")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"preprocessing": "magic"}, "this server knows resized and strokes"),
        ({"preprocessing": "strokes", "image_size": 16}, "strokes are 28 pixels"),
        ({"ask_below": 1.5}, "ask_below 1.5 is not between 0 and 1"),
        ({"calibration": {"temperature": 0}}, "not a positive number"),
        ({"image_size": 4}, "not between 8 and 2048"),
    ],
)
def test_a_bundle_with_a_setting_that_cannot_be_is_not_loaded(tmp_path: Path, setting: dict[str, object], message: str) -> None:
    make_image_bundle(tmp_path)
    load_image_predictor(tmp_path, 1)
    spec = json.loads((tmp_path / "bundle.json").read_text(encoding="utf-8"))
    (tmp_path / "bundle.json").write_text(json.dumps(spec | setting), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_image_predictor(tmp_path, 1)


def test_a_bundle_that_says_when_to_ask_says_who_is_sure(tmp_path: Path) -> None:
    make_image_bundle(tmp_path)
    assert "sure" not in load_image_predictor(tmp_path, 1).predict([png(0)])[0], "tires ask nobody"
    spec = json.loads((tmp_path / "bundle.json").read_text(encoding="utf-8"))
    (tmp_path / "bundle.json").write_text(json.dumps(spec | {"ask_below": 0.9}), encoding="utf-8")
    answers = load_image_predictor(tmp_path, 1).predict([png(0), png(250)])
    assert [answer["sure"] for answer in answers] == [False, True]


def test_the_command_sends_files(
    server: Running, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(png(250))
    monkeypatch.setattr(cli, "load_settings", lambda: settings.model_copy(update={"serve_url": server.url}))
    cli.predict(SYSTEM, str(photo), str(photo))
    assert capsys.readouterr().out.count("photo.png") == 2
    with pytest.raises(cli.Stop, match="is no file: tires reads pictures"):
        cli.predict(SYSTEM, str(tmp_path / "missing.png"))


def test_the_predictor_answers_bytes_in_batches(tmp_path: Path) -> None:
    make_image_bundle(tmp_path)
    assert load(tmp_path, "tires", 1).labels == ["good", "defective"]
    predictor = load_image_predictor(tmp_path, 1)
    levels = list(range(0, 250, 12))
    assert len(levels) > 2 * BATCH_IMAGES
    for level, row in zip(levels, predictor.probabilities([png(level) for level in levels]), strict=True):
        assert row.tolist() == pytest.approx(brightness_probabilities(level), abs=1e-4)
    with pytest.raises(BadInput):
        predictor.check(["x"] * (MAX_IMAGES + 1))
    assert predictor.predict([]) == []
