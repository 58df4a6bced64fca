"""Files for clients that read no ledger: they are whole, and `latest_model.yaml` moves by a promotion or rollback alone, last of all."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_assets.lifecycle import clients, outbox, retention
from mlops_assets.lifecycle.bundle import File
from mlops_assets.lifecycle.pipeline import NoParent, Parent, Platform, parent_of
from mlops_assets.settings import ClientFiles, SettingsError
from mlops_assets.tracking import Tracking
from mlops_assets_tests.factories import BAD, GOOD, World, config_of
from mlops_assets_tests.toy import toy_system

torch = pytest.importorskip("torch")


@pytest.fixture
def files(world: World) -> World:
    world.config = config_of().model_copy(update={"clients": ClientFiles(state_dict=True)})
    return world


def platform(world: World) -> Platform:
    return Platform(world.settings, world.engine, world.store, Tracking(None))


def registered(world: World, version: str, f1: float, content: str) -> Any:
    from safetensors.torch import save

    weights = save({"w": torch.full((2,), f1)})
    named = {clients.WEIGHTS: File(hashlib.sha256(weights).hexdigest(), len(weights))}
    made = world.attempt(version, content=content, weights=named)
    world.store.put(f"weights/{made.bundle_sha256}/{clients.WEIGHTS}", weights)
    return world.registrar().register(made.id, world.report(made, {**GOOD, "f1": f1, "accuracy": f1}))


def hand_out(world: World) -> int:
    return outbox.deliver(world.engine, {clients.TOPIC: clients.receiver(platform(world))})


def latest(world: World) -> dict[str, Any]:
    return dict(yaml.safe_load(world.store.get(clients.latest_key("toy"))))


def test_a_version_has_its_files_and_the_champion_is_named(files: World, tmp_path: Path) -> None:
    registered(files, "v1", 0.86, "one")
    hand_out(files)
    assert latest(files)["version"] == 1
    files.store.download(latest(files)["state_dict"], tmp_path / "model.pt")
    assert torch.load(tmp_path / "model.pt", weights_only=True)["w"].tolist() == pytest.approx([0.86, 0.86])
    files.store.download(latest(files)["params"], tmp_path / "params.yaml")
    given = clients.read_parameters(tmp_path / "params.yaml", "toy")
    assert given.parameters == {"epochs": 1} and given.seed == 1, "what trained it can be asked for again"


def test_only_a_promotion_or_a_rollback_moves_it(files: World) -> None:
    registered(files, "v1", 0.86, "one")
    registered(files, "v2", 0.83, "two")  # good enough, not better
    hand_out(files)
    assert latest(files)["version"] == 1 and files.store.exists("clients/toy/v2/model.pt")
    files.registrar().stage("f1", version=2)
    hand_out(files)
    assert latest(files)["version"] == 1
    registered(files, "v3", 0.95, "three")
    hand_out(files)
    assert latest(files)["version"] == 3
    files.registrar().rollback(reason="complaints")
    hand_out(files)
    assert latest(files)["version"] == 1
    made = files.attempt("v4", content="bad")
    files.registrar().register(made.id, files.report(made, BAD))
    hand_out(files)
    assert latest(files)["version"] == 1 and not files.store.exists("clients/toy/v4/params.yaml")


def test_it_is_not_moved_to_files_that_are_not_there(files: World) -> None:
    registered(files, "v1", 0.86, "one")
    hand_out(files)
    made = registered(files, "v2", 0.95, "two")
    weights = files.store.get(f"weights/{made.receipt.bundle_sha256}/{clients.WEIGHTS}")
    files.store.delete(f"weights/{made.receipt.bundle_sha256}/{clients.WEIGHTS}")
    hand_out(files)
    assert latest(files)["version"] == 1, "control: the ledger says 2, whose state dict could not be written"
    files.store.put(f"weights/{made.receipt.bundle_sha256}/{clients.WEIGHTS}", weights)
    hand_out(files)
    assert latest(files)["version"] == 2, "what was held back is handed out afterwards"


def test_a_champion_that_is_no_network_holds_nobody_back(files: World) -> None:
    """Control: the test above, where a network's weights are awaited."""
    registered(files, "v1", 0.86, "one")
    hand_out(files)
    tables = {"linear.safetensors": File(hashlib.sha256(b"tables").hexdigest(), 6)}
    made = files.attempt("v2", content="two", weights=tables)
    files.registrar().register(made.id, files.report(made, {**GOOD, "f1": 0.95, "accuracy": 0.95}))
    hand_out(files)
    assert latest(files)["version"] == 1 and not files.store.exists("clients/toy/v2/model.pt")
    assert hand_out(files) == 0, "nothing waits"
    registered(files, "v3", 0.99, "three")
    hand_out(files)
    assert latest(files)["version"] == 3


def test_again_it_writes_nothing_new(files: World) -> None:
    registered(files, "v1", 0.86, "one")
    hand_out(files)
    before = {info.key: info.etag for info in files.store.list("clients/toy/v1")}
    clients.receiver(platform(files))({"system": "toy", "version": 1, "promoted": True})
    assert {info.key: info.etag for info in files.store.list("clients/toy/v1")} == before


def test_a_system_that_wants_none_has_none(world: World) -> None:
    registered(world, "v1", 0.86, "one")
    assert hand_out(world) == 0 and list(world.store.list("clients")) == []


def test_they_go_with_the_bytes_of_their_version(files: World) -> None:
    for number in range(1, 7):
        registered(files, f"v{number}", 0.84 + number / 100, f"content {number}")
    hand_out(files)
    retention.apply(files.engine, files.store, "toy", files.settings.public_keys_path, rollback_depth=1, actor="test")
    kept = {info.key.split("/")[2] for info in files.store.list("clients/toy") if "/v" in info.key}
    assert kept == {"v4", "v5", "v6"} and latest(files)["version"] == 6


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs: 3\n", "epochs is unknown; .* under `parameters`"),
        ("seed: abc\n", "seed must be of type int"),
        ("parameters: [1]\n", "parameters must be of type dict"),
        ("system: tires\nparameters: {}\n", "is of tires, not of toy"),
        ("- 1\n", "must hold a mapping"),
    ],
)
def test_a_wrong_params_yaml_says_what_is_wrong(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SettingsError, match=message):
        clients.read_parameters(path, "toy")


# --- going on from the champion -------------------------------------------------------------------------------------------------


def test_a_variant_goes_on_from_a_champion_whose_data_it_extends(world: World) -> None:
    import dataclasses

    from sqlalchemy import text

    system = dataclasses.replace(toy_system(variants={"anew": 0.86, "on": 0.86}), from_champion=("on",))
    assert parent_of(platform(world), system, "anew", "v1") is None
    with pytest.raises(NoParent, match="no champion yet"):
        parent_of(platform(world), system, "on", "v1")
    weights = {clients.WEIGHTS: File("0" * 64, 1)}
    done = world.registered("v1", GOOD, weights=weights)
    with pytest.raises(NoParent, match="no weights of a network"):
        parent_of(platform(world), dataclasses.replace(system, baseline=done.receipt.variant), "on", "v1")
    for version, parent in (("v2", "v1"), ("v3", "v2"), ("other", None)):
        world.dataset(version)
        with world.engine.begin() as connection:
            connection.execute(text("UPDATE dataset_version SET parent = :p WHERE version = :v"), {"p": parent, "v": version})
    assert done.receipt is not None
    wanted = Parent(1, "v1", done.receipt.bundle_sha256, weights)
    assert [parent_of(platform(world), system, "on", version) for version in ("v1", "v2", "v3")] == [wanted] * 3
    with pytest.raises(NoParent, match="other does not extend v1"):
        parent_of(platform(world), system, "on", "other")
