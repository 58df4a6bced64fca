"""From a confirmed code to labelled drawings, over HTTP: nothing without consent and the back-end's word, and of a code nothing."""

from __future__ import annotations

import base64
import io
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image
from sqlalchemy import Engine, text

from mlops_assets import otp
from mlops_assets.ingest import drawn
from mlops_assets.serving.images import ImagePredictor
from mlops_assets.serving.otp import Holding
from mlops_assets.settings import Settings
from mlops_assets_tests import drawings
from mlops_assets_tests.drawings import SECRET, callback, confirmation, drawing, left_behind, places, png, session_of, token
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.serving.bundles import make_image_bundle
from mlops_assets_tests.serving.running import Running, database_away, running, until

CODE = "739184"


@pytest.fixture
def with_secret(settings: Settings) -> Settings:
    return settings.model_copy(update={"otp_secret": SECRET})


@pytest.fixture
def server(with_secret: Settings, engine: Engine) -> Iterator[Running]:
    with running(with_secret) as started:
        yield started


def confirm(server: Running, body: dict[str, Any]) -> Any:
    return server.client.post("/otp/confirmation", json=body)


def verified(server: Running, body: dict[str, Any]) -> Any:
    return server.client.post("/otp/verified", json=body)


def rows(engine: Engine) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(text("SELECT * FROM drawn ORDER BY ctid")).all())


def serve_digits(server: Running, world: World, folder: Path) -> int:
    """Promote a bundle that says 1 to bright pictures, and wait until it answers."""
    bundle = make_image_bundle(folder / "bundle", system="digits", labels=("0", "1"))
    receipt = world.registered("v1", folder=bundle).receipt
    assert receipt is not None
    until(lambda: server.version("digits") == receipt.version)
    return receipt.version


def figure(server: Running, name: str, **labels: str) -> float:
    """A series of /metrics; 0 when it is not there yet."""
    wanted = name + ("{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else "")
    lines = server.client.get("/metrics").text.splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == wanted), 0.0)


def nothing_happened(server: Running, engine: Engine) -> bool:
    return rows(engine) == [] and figure(server, "mlops_otp_drawings_held") == 0


# --- the way of a drawing ---------------------------------------------------------------------------------------------------------


def test_a_drawing_is_kept_when_its_user_wants_it_and_the_back_end_has_verified_the_code(server, engine):
    given = token("user-1")
    answer = confirm(server, confirmation(given, CODE))
    assert (answer.status_code, answer.json()) == (202, {"held": 6})
    assert rows(engine) == [] and figure(server, "mlops_otp_drawings_held") == 6
    answer = verified(server, callback(given, CODE))
    assert (answer.status_code, answer.json()) == (200, {"stored": 6, "dropped": 0})
    kept = rows(engine)
    assert Counter(row.label for row in kept) == Counter(CODE)
    assert {row.writer for row in kept} == {otp.pseudonym(SECRET, "user-1")}
    assert figure(server, "mlops_otp_drawings_held") == 0 and figure(server, "mlops_otp_drawings_stored_total") == 6
    picture = Image.open(io.BytesIO(bytes(kept[0].picture)))
    assert picture.mode == "L" and max(picture.size) == drawn.KEPT_SIDE


def test_without_consent_nothing_is_held_and_the_callback_finds_nothing(server, engine):
    given = token()
    assert confirm(server, confirmation(given, CODE, save=False)).json() == {"held": 0}
    assert verified(server, callback(given, CODE)).json()["code"] == "nothing_held"
    assert nothing_happened(server, engine)
    assert figure(server, "mlops_otp_digits_confirmed_total", version="other") == 6  # counted all the same


def test_a_typed_digit_is_never_stored(server, engine):
    given = token()
    body = confirmation(given, CODE)
    for place in (0, 3):
        body["entries"][place] = {"drawn": None, "first": None, "asked_again": 2, "version": None}
    assert confirm(server, body).json() == {"held": 4}
    assert verified(server, callback(given, CODE)).json()["stored"] == 4
    assert Counter(row.label for row in rows(engine)) == Counter(CODE[1:3] + CODE[4:])


def test_a_file_is_drawn_anew_so_that_nothing_rides_along_in_it(server, engine):
    from PIL.PngImagePlugin import PngInfo

    note = PngInfo()
    note.add_text("Comment", f"the code is {CODE}")
    given = token()
    body = confirmation(given, CODE)
    body["entries"][0]["drawn"] = png(drawing(CODE[0], 1), pnginfo=note)
    confirm(server, body)
    assert verified(server, callback(given, CODE)).json()["stored"] == 6
    assert all(CODE.encode() not in bytes(row.picture) for row in rows(engine))


def test_a_picture_without_ink_is_left_out_and_spoils_no_other(server, engine):
    given = token()
    body = confirmation(given, CODE)
    body["entries"][2]["drawn"] = png(Image.new("L", (100, 100), "white"))
    assert confirm(server, body).json() == {"held": 5}
    assert figure(server, "mlops_otp_drawings_dropped_total", reason="nothing_drawn") == 1


def test_the_order_in_the_table_is_not_that_of_the_code(with_secret, engine, tmp_path):
    codes = ["01234567", "76543210", "24680135", "98765432", "13579024", "86420975"]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "digits.yaml").write_text("drawings: {near_duplicate: 0}")
    with running(with_secret.model_copy(update={"configs": tmp_path / "configs"})) as server:
        for number, code in enumerate(codes):
            given = token(f"user-{number}", 8)
            confirm(server, confirmation(given, code, seed=number))
            assert verified(server, callback(given, code)).json()["stored"] == 8
    # By writer: a row may go where an earlier page of the table has room.
    kept = rows(engine)
    found = ["".join(row.label for row in kept if row.writer == otp.pseudonym(SECRET, f"user-{n}")) for n in range(len(codes))]
    assert [sorted(one) for one in found] == [sorted(code) for code in codes]  # a control: it is these codes' digits that stand there
    assert sum(one == code for one, code in zip(found, codes, strict=True)) == 0
    assert len({row.on_day for row in rows(engine)}) == 1 and not hasattr(rows(engine)[0].on_day, "hour")


# --- what is refused --------------------------------------------------------------------------------------------------------------


def bomb() -> str:
    return png(Image.new("1", (5000, 5000), 1))


BAD_BODIES: dict[str, tuple[dict[str, Any], str]] = {
    "no token": ({"session": None}, "bad_session"),
    "forged": ({"session": otp.make_token(SECRET[::-1], "user-1", 6, drawings.VERIFY_URL)}, "bad_session"),
    "expired": ({"session": otp.make_token(SECRET, "user-1", 6, drawings.VERIFY_URL, now=time.time() - 3600)}, "session_expired"),
    "save is a text": ({"save": "yes"}, "bad_save"),
    "no digits": ({"digits": None}, "wrong_digits"),
    "five digits": ({"digits": CODE[:5]}, "wrong_digits"),
    "other digits": ({"digits": "٧٣٩١٨٤"}, "wrong_digits"),
    "digits without consent": ({"save": False}, "not_to_be_sent"),
    "drawings without consent": ({"save": False, "digits": None}, "not_to_be_sent"),
    "no entries": ({"entries": {}}, "wrong_entries"),
    "five entries": ({"entries": confirmation(token(), CODE)["entries"][:5]}, "wrong_entries"),
    "seven drawings": ({"entries": confirmation(token(), CODE)["entries"] * 2}, "wrong_entries"),
    "an entry is a list": ({"entries": [[]] * 6}, "wrong_entries"),
    "asked half a time": ({"entry": {"asked_again": 0.5}}, "wrong_entries"),
    "asked too often": ({"entry": {"asked_again": 10**9}}, "wrong_entries"),
    "first is a word": ({"entry": {"first": "one"}}, "wrong_entries"),
    "a long version": ({"entry": {"version": "1" * 21}}, "wrong_entries"),
    "drawn is a number": ({"entry": {"drawn": 7}}, "not_base64"),
    "not base64": ({"entry": {"drawn": "%%%"}}, "not_base64"),
    "not a PNG": ({"entry": {"drawn": "R0lGODlhAQABAAAAACw="}}, "not_png"),
    "half a PNG": ({"entry": {"drawn": png(drawing("7", 1))[:400]}}, "truncated"),
    "a bomb": ({"entry": {"drawn": bomb()}}, "too_many_pixels"),
    "a large file": ({"entry": {"drawn": "A" * 400_000}}, "too_large_file"),
}


def test_what_is_not_as_it_should_be_is_refused_and_leaves_nothing(server, engine):
    given = token()
    for name, (change, code) in BAD_BODIES.items():
        body = confirmation(given, CODE)
        body["entries"][2] |= change.get("entry", {})
        answer = confirm(server, {**body, **{key: value for key, value in change.items() if key != "entry"}})
        assert 400 <= answer.status_code < 500 and answer.json()["code"] == code, (name, answer.text)
        assert CODE not in answer.text and session_of(given) not in answer.text, name
    assert nothing_happened(server, engine)
    assert confirm(server, confirmation(given, CODE)).status_code == 202  # a control, and the session was not used up


def test_a_body_that_is_no_object_or_too_large_is_refused(server):
    for body, code in ((b"{", "bad_json"), (b"[]", "no_session"), (b"x" * (4 * 1024**2), "too_large")):
        for address in ("/otp/confirmation", "/otp/verified"):
            assert server.client.post(address, content=body).json()["code"] == code


def test_who_thinks_better_of_it_before_the_code_is_sent_keeps_nothing(server, engine):
    given = token()
    assert confirm(server, confirmation(given, CODE)).json() == {"held": 6}
    assert confirm(server, confirmation(given, CODE)).json()["code"] == "session_used"
    assert confirm(server, confirmation(given, CODE, save=False)).json() == {"held": 0}
    assert figure(server, "mlops_otp_drawings_dropped_total", reason="withdrawn") == 6
    assert confirm(server, confirmation(given, CODE)).json()["code"] == "session_used"  # nor is it changed again
    assert verified(server, callback(given, CODE)).json()["code"] == "nothing_held"
    assert nothing_happened(server, engine)


def test_who_is_forgotten_by_another_process_gives_nothing_that_was_confirmed_before(server, engine, store, settings):
    given = token("user-1")
    confirm(server, confirmation(given, CODE))
    drawn.forget_writers(engine, store, "digits", [otp.pseudonym(SECRET, "user-1")], settings.public_keys_path)
    assert verified(server, callback(given, CODE)).json() == {"stored": 0, "dropped": 6}
    assert nothing_happened(server, engine)


def test_a_session_counts_once(server, engine):
    given = token()
    assert confirm(server, confirmation(given, CODE)).status_code == 202
    again = confirm(server, confirmation(given, "000000", seed=9))
    assert (again.status_code, again.json()["code"]) == (409, "session_used")
    assert verified(server, callback(given, CODE)).json()["stored"] == 6
    assert verified(server, callback(given, CODE)).json()["code"] == "nothing_held"
    assert len(rows(engine)) == 6


def test_digits_that_are_not_the_verified_code_are_dropped(server, engine):
    """A user who confirms other digits than those that the back-end accepted: the macs differ."""
    given = token()
    confirm(server, confirmation(given, "739185"))
    assert verified(server, callback(given, CODE)).json()["code"] == "nothing_held"
    assert nothing_happened(server, engine)
    assert figure(server, "mlops_otp_drawings_dropped_total", reason="wrong_mac") == 6
    assert verified(server, callback(given, "739185")).json()["code"] == "nothing_held"  # one wrong callback was enough


def test_every_callback_that_stores_nothing_is_answered_alike(server, engine):
    held, unsaved, early = token("a"), token("b"), token("c")
    before = verified(server, callback(early, CODE))
    confirm(server, confirmation(held, CODE))
    confirm(server, confirmation(unsaved, CODE, save=False))
    answers = [
        before,
        verified(server, {"session": session_of(held), "mac": "0" * 64}),
        verified(server, {"session": session_of(held), "mac": "한글"}),
        verified(server, {"session": "00" * 16, "mac": "0" * 64}),
        verified(server, callback(unsaved, CODE)),
        verified(server, callback(held, CODE, SECRET[::-1])),
    ]
    assert {answer.status_code for answer in answers} == {404}
    assert len({str({key: value for key, value in answer.json().items() if key != "request_id"}) for answer in answers}) == 1
    assert rows(engine) == []


def test_what_is_not_verified_in_time_is_dropped(with_secret, engine):
    with running(with_secret.model_copy(update={"otp_hold_seconds": 0.05})) as server:
        given = token()
        assert confirm(server, confirmation(given, CODE)).json() == {"held": 6}
        until(lambda: figure(server, "mlops_otp_drawings_dropped_total", reason="expired") == 6)
        assert verified(server, callback(given, CODE)).status_code == 404
        assert nothing_happened(server, engine)


def test_only_so_many_sessions_are_held(with_secret, engine):
    with running(with_secret.model_copy(update={"otp_held_sessions": 1})) as server:
        first, second = token("a"), token("b")
        assert confirm(server, confirmation(first, CODE)).json() == {"held": 6}
        assert confirm(server, confirmation(second, CODE, seed=1)).json() == {"held": 0}
        assert figure(server, "mlops_otp_drawings_dropped_total", reason="too_many_held") == 6
        assert verified(server, callback(first, CODE)).json()["stored"] == 6  # it was not pushed out


def test_used_sessions_are_forgotten_only_when_their_token_has_ended():
    now, expired = [0.0], []
    holding = Holding(600, 10, expired.append, clock=lambda: now[0])
    assert holding.use("s", 60) is None
    now[0] = 59
    assert holding.use("s", 60) == "session_used"
    now[0] = 61
    assert holding.use("s", 60) is None


def test_a_server_without_a_secret_only_practises(settings, engine):
    with running(settings) as server:
        for answer in (
            confirm(server, confirmation(token(), CODE)),
            verified(server, callback(token(), CODE)),
            server.client.delete("/otp/users/u"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (409, "no_session_secret")
        assert nothing_happened(server, engine)


def test_while_the_database_is_away_the_drawings_wait_for_the_next_callback(server, engine, settings):
    given = token()
    confirm(server, confirmation(given, CODE))
    with database_away(settings.require("database_url")) as back:
        assert verified(server, callback(given, CODE)).json()["code"] == "ledger_away"
        back()
        assert verified(server, callback(given, CODE)).json()["stored"] == 6


# --- figures ----------------------------------------------------------------------------------------------------------------------


def test_digits_are_counted_by_the_version_that_read_them(server, engine, store, with_secret, tmp_path):
    version = serve_digits(server, World(engine, with_secret, store, "digits", config_of("digits")), tmp_path)
    body = confirmation(token(), CODE)
    for entry in body["entries"]:
        entry["version"] = str(version)
    body["entries"][0] |= {"first": "0", "asked_again": 2}
    body["entries"][1] |= {"version": "987654"}
    confirm(server, body)
    unsaved = confirmation(token(), CODE, save=False)
    unsaved["entries"] = [{"asked_again": 1, "corrected": place == 0, "version": str(version)} for place in range(6)]
    confirm(server, unsaved)
    mine = {"version": str(version)}
    assert figure(server, "mlops_otp_digits_confirmed_total", **mine) == 5 + 6
    assert figure(server, "mlops_otp_digits_asked_again_total", **mine) == 2 + 6
    assert figure(server, "mlops_otp_digits_corrected_total", **mine) == 2
    assert figure(server, "mlops_otp_digits_confirmed_total", version="other") == 1
    assert "987654" not in server.client.get("/metrics").text


# --- nothing of a code anywhere ---------------------------------------------------------------------------------------------------


def everything(server: Running, engine: Engine, settings: Settings, log: str) -> dict[str, str]:
    return left_behind([engine], [Path(settings.home).parent]) | {"log": log, "metrics": server.client.get("/metrics").text}


@pytest.mark.parametrize("secret_answers", [True, False])
def test_planted_codes_and_sessions_are_found_nowhere(server, engine, store, with_secret, tmp_path, caplog, monkeypatch, secret_answers):
    """The control: of a model whose answers are recorded, the table `answer` has the code."""
    monkeypatch.setattr(ImagePredictor, "secret_answers", secret_answers, raising=False)
    caplog.set_level(logging.DEBUG)
    serve_digits(server, World(engine, with_secret, store, "digits", config_of("digits")), tmp_path)
    code, wrong, given, other = "10011101", "73918462", token("user-1", 8), token("user-2", 8)
    # The bundle of the tests says 1 to bright pictures: the model reads this code.
    pictures = [png(Image.new("L", (20, 20), 255 if digit == "1" else 0)) for digit in code]
    files = [("files", ("drawing.png", base64.b64decode(one), "image/png")) for one in pictures]
    read = server.client.post("/predict/digits", files=files).json()["predictions"]
    assert len(read) == 8
    confirm(server, confirmation(given, code))
    assert verified(server, callback(given, code)).status_code == 200
    confirm(server, confirmation(other, wrong))
    verified(server, callback(other, code))
    verified(server, {"session": session_of(other)})
    confirm(server, {"session": given, "digits": code, "entries": code, "save": True})
    server.server.answers.flush()
    said = "".join(one["label"] for one in read)
    everywhere = everything(server, engine, with_secret, caplog.text)
    assert len(everywhere) > 20 and "table drawn" in everywhere
    ids = session_of(given), session_of(other)
    assert said == code and places(everywhere, wrong, ids[1]) == []
    assert places(everywhere, code, ids[0]) == ([] if secret_answers else ["table answer"])
    everywhere["a control"] = f"['1', '0', '0', '1', '1', '1', '0', '1'] {ids[1]}"
    assert "a control" in places(everywhere, code, "no session") and places(everywhere, "no code", ids[1]) == ["a control"]
    assert "user-1" not in "".join(everywhere.values())


# --- forgetting -------------------------------------------------------------------------------------------------------------------


def delete(server: Running, user: str, at: int | None = None, mac: str | None = None, **headers: str) -> Any:
    at = int(time.time()) if at is None else at
    headers = {"X-OTP-Time": str(at), "X-OTP-MAC": otp.forget_mac(SECRET, user, at) if mac is None else mac} | headers
    return server.client.delete(f"/otp/users/{quote(user, safe='')}", headers=headers)


def test_a_user_is_forgotten_with_what_is_held_and_nobody_else(server, engine):
    for number, user in enumerate(("a/b ü", "other")):
        given = token(user)
        confirm(server, confirmation(given, CODE, seed=number))
        verified(server, callback(given, CODE))
    waiting = token("a/b ü")
    confirm(server, confirmation(waiting, CODE, seed=3))
    answer = delete(server, "a/b ü")
    assert (answer.status_code, answer.json()) == (200, {"drawings": 12, "dataset_versions": [], "models": []})
    assert {row.writer for row in rows(engine)} == {otp.pseudonym(SECRET, "other")}
    assert verified(server, callback(waiting, CODE)).status_code == 404
    assert delete(server, "a/b ü").json()["drawings"] == 0


def test_nobody_is_forgotten_without_the_back_ends_signature(server, engine):
    given = token("u")
    confirm(server, confirmation(given, CODE))
    verified(server, callback(given, CODE))
    now = int(time.time())
    refused = [
        delete(server, "u", mac="0" * 64),
        delete(server, "u", mac=otp.forget_mac(SECRET, "v", now)),
        delete(server, "u", at=now - otp.FORGET_SECONDS - 60),
        delete(server, "u", **{"X-OTP-Time": str(now + 1)}),
        delete(server, "u", **{"X-OTP-Time": "soon"}),
        server.client.delete("/otp/users/u"),
    ]
    assert {(answer.status_code, answer.json()["code"]) for answer in refused} == {(403, "bad_signature")}
    assert len(rows(engine)) == 6
    assert delete(server, "u").json()["drawings"] == 6  # a control


def test_who_gave_drawings_under_a_former_secret_is_forgotten_too(with_secret, engine):
    given = token("u")
    with running(with_secret) as server:
        confirm(server, confirmation(given, CODE))
        verified(server, callback(given, CODE))
    new = "another secret of at least 32 characters"
    for former, left in (("", 6), (SECRET, 0)):
        with running(with_secret.model_copy(update={"otp_secret": new, "otp_former_secrets": former})) as server:
            assert delete(server, "u", mac=otp.forget_mac(new, "u", int(time.time()))).status_code == 200
            assert len(rows(engine)) == left
