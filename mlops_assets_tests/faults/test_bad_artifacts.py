"""Twelve kinds of bad artifact: the old model serves on, and the reason is in the log and in GET /models.

Each is promoted by the real registrar (or forged into the ledger, where that is the fault) while a server answers.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from mlops_assets.lifecycle import bundle, promotion
from mlops_assets.lifecycle.bundle import File
from mlops_assets.lifecycle.signing import load_signer
from mlops_assets.settings import Settings, canonical
from mlops_assets.store import ObjectStore
from mlops_assets_tests.factories import World, config_of
from mlops_assets_tests.serving.bundles import make_bundle, probabilities
from mlops_assets_tests.serving.running import MANUAL, Running, promote, register, register_folder, running

INSERT_PROMOTION = (
    "INSERT INTO promotion (system, sequence, channel, kind, version, bundle_sha256, payload, signature, key_id, actor, reason) "
    "VALUES ('sentiment', 2, 'champion', 'promote', :v, :b, :p, :s, :k, 'a', 'r')"
)


@pytest.fixture
def world(engine: Engine, settings: Settings, store: ObjectStore) -> World:
    return World(engine, settings, store, "sentiment", config_of("sentiment"))


def key(world: World, version: int, name: str = "model.onnx") -> str:
    with world.engine.connect() as connection:
        found = promotion.receipt(connection, "sentiment", version)
    assert found is not None
    return bundle.key_of(found.bundle_sha256, name)


def forge(world: World, sql: str, **values: object) -> None:
    """What someone with the database's password can do: past the triggers and foreign keys, but without the signing key."""
    with world.engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(sql), values)


def truncated(world: World, folder: Path) -> None:
    version = register(world, folder, strength=2.0)
    world.store.put(key(world, version), (folder / "model.onnx").read_bytes()[:-100])
    promote(world, version)


def bit_flip(world: World, folder: Path) -> None:
    version = register(world, folder, strength=2.0)
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    world.store.put(key(world, version), bytes(content))
    promote(world, version)


def wrong_digest(world: World, folder: Path) -> None:
    """Another whole and working bundle under the promoted one's address."""
    version = register(world, folder, strength=2.0)
    other = make_bundle(folder.with_name("other"), strength=-3.0)
    for path in other.iterdir():
        world.store.put(key(world, version, path.name), path)
    promote(world, version)


def no_receipt(world: World, folder: Path) -> None:
    """Signed by the registrar's own key, and still the version was never registered."""
    body = {"system": "sentiment", "sequence": 2, "channel": "champion", "kind": "promote", "version": 99, "bundle_sha256": "0" * 64}
    payload = canonical(body | {"actor": "a", "reason": "r"})
    signer = load_signer(world.settings)
    forge(world, INSERT_PROMOTION, v=99, b="0" * 64, p=payload, s=signer.sign(payload), k=signer.key_id)


def forged_receipt(world: World, folder: Path) -> None:
    """The receipt names another bundle than was signed."""
    version = register(world, folder, strength=2.0)
    digest, files = bundle.publish(world.store, make_bundle(folder.with_name("evil"), strength=-3.0))
    with world.engine.connect() as connection:
        found = promotion.receipt(connection, "sentiment", version)
    assert found is not None
    body = found.body | {"bundle_sha256": digest, "files": {name: list(file) for name, file in files.items()}}
    forge(world, "UPDATE receipt SET bundle_sha256 = :b, payload = :p WHERE version = :v", b=digest, p=canonical(body), v=version)
    promotion_body = {"system": "sentiment", "sequence": 2, "channel": "champion", "kind": "promote", "version": version}
    forge(world, INSERT_PROMOTION, v=version, b=digest, p=canonical(promotion_body), s=found.signature, k=found.key_id)


def pickled(world: World, folder: Path) -> None:
    """Registered by code that did not look: the receipt's list has a file that can hold code."""
    make_bundle(folder, strength=2.0)
    (folder / "model.bin").write_bytes(b"\x80\x04N.")  # a pickle of None
    promote(world, register_unchecked(world, folder))


def nan_weights(world: World, folder: Path) -> None:
    promote(world, register_folder(world, make_bundle(folder, nan=True)))


def wrong_labels(world: World, folder: Path) -> None:
    promote(world, register_folder(world, make_bundle(folder, strength=2.0, labels=("부정", "중립", "긍정"))))


def missing_file(world: World, folder: Path) -> None:
    version = register(world, folder, strength=2.0)
    world.store.delete(key(world, version, "tokenizer.json"))
    promote(world, version)


def too_large(world: World, folder: Path) -> None:
    """The stored file goes on after the signed size."""
    version = register(world, folder, strength=2.0)
    world.store.put(key(world, version), (folder / "model.onnx").read_bytes() + bytes(1024))
    promote(world, version)


def hangs(world: World, folder: Path) -> None:
    promote(world, register_folder(world, make_bundle(folder, endless=True)))


def other_systems(world: World, folder: Path) -> None:
    promote(world, register_folder(world, make_bundle(folder, strength=2.0, system="hate_speech")))


KINDS: dict[Callable[[World, Path], None], str] = {
    truncated: "wrong_digest",
    bit_flip: "wrong_digest",
    wrong_digest: "wrong_digest",
    no_receipt: "no_receipt",
    forged_receipt: "bad_signature",
    pickled: "unsafe_file",
    nan_weights: "golden",
    wrong_labels: "wrong_labels",
    missing_file: "missing_file",
    too_large: "too_large",
    hangs: "hangs",
    other_systems: "other_system",
}


def register_unchecked(world: World, folder: Path) -> int:
    """Register a folder whose file names `bundle.publish` would refuse."""
    allowed = bundle.ALLOWED_SUFFIXES
    try:
        bundle.ALLOWED_SUFFIXES = allowed | {".bin"}
        return register_folder(world, folder)
    finally:
        bundle.ALLOWED_SUFFIXES = allowed


def positive(server: Running) -> float:
    return float(server.predict("좋은 영화").json()["predictions"][0]["probs"]["긍정"])


def test_there_are_twelve() -> None:
    assert len(KINDS) == 12


@pytest.mark.parametrize("spoil", KINDS, ids=lambda spoil: spoil.__name__)
def test_the_old_model_serves_on(
    spoil: Callable[[World, Path], None], world: World, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = register(world, tmp_path / "good", strength=1.0)
    promote(world, good)
    with caplog.at_level(logging.ERROR, "mlops.serving"), running(settings, load_seconds=10 if spoil is hangs else 60) as server:
        server.serves(good)
        spoil(world, tmp_path / "bad")
        refusal = server.refused(KINDS[spoil])
        assert refusal["reason"]
        assert refusal["reason"] in caplog.text
        answer = server.predict("좋은 영화")
        assert (answer.status_code, answer.headers["X-Model-Version"]) == (200, str(good))
        assert positive(server) == pytest.approx(probabilities("좋은 영화", 1.0)[1], abs=1e-5)
        assert server.models()["serving"]["version"] == good
        # What is good comes through afterwards: the refusal did not stop the server from following.
        better = register(world, tmp_path / "better", strength=3.0)
        promote_past(world, better)
        server.serves(better)


@pytest.mark.parametrize("spoil", [nan_weights, bit_flip, no_receipt], ids=lambda spoil: spoil.__name__)
def test_a_server_that_starts_on_a_bad_promotion_serves_the_last_good_one(
    spoil: Callable[[World, Path], None], world: World, settings: Settings, tmp_path: Path
) -> None:
    good = register(world, tmp_path / "good", strength=1.0)
    promote(world, good)
    with running(settings) as server:
        server.serves(good)
    spoil(world, tmp_path / "bad")
    with running(settings) as server:
        assert server.predict("좋은 영화").headers["X-Model-Version"] == str(good)
        server.refused(KINDS[spoil])


def test_what_goes_bad_on_the_servers_own_disk_is_fetched_again(world: World, settings: Settings, tmp_path: Path) -> None:
    good = register(world, tmp_path / "good", strength=1.0)
    promote(world, good)
    with running(settings) as server:
        server.serves(good)
    cached = next((settings.home / "serving" / "champion" / "sentiment" / "bundles").glob("*/model.onnx"))
    content = bytearray(cached.read_bytes())
    content[len(content) // 2] ^= 1
    cached.write_bytes(bytes(content))
    with running(settings) as server:
        assert server.version() == good
        assert cached.read_bytes() == (tmp_path / "good" / "model.onnx").read_bytes()


def test_the_faults_are_faults(world: World, settings: Settings, tmp_path: Path) -> None:
    """The control: the same bundle, unspoilt, is served."""
    good = register(world, tmp_path / "good", strength=1.0)
    promote(world, good)
    with running(settings) as server:
        server.serves(good)
        second = register(world, tmp_path / "second", strength=2.0)
        promote(world, second)
        server.serves(second)
        assert server.models()["refused"] == []


def test_the_receipts_list_must_have_the_promoted_digest(world: World, settings: Settings, tmp_path: Path) -> None:
    folder = make_bundle(tmp_path / "a")
    digest, files = bundle.publish(world.store, folder)
    lied = files | {"bundle.json": File(files["bundle.json"].sha256, files["bundle.json"].size + 1)}
    with pytest.raises(bundle.BadBundle, match="file list"):
        bundle.fetch(world.store, digest, lied, tmp_path / "cache")
    assert json.loads((bundle.fetch(world.store, digest, files, tmp_path / "cache") / "bundle.json").read_text())["system"] == "sentiment"


def promote_past(world: World, version: int) -> None:
    """Promote, also where the ledger's newest row is forged or without a receipt."""
    world.registrar(MANUAL).produce(version=version, reason="after the bad one")
