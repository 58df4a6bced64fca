"""A run survives a kill at every named point and ends as if it had not happened; batches, early stopping, logs."""

from __future__ import annotations

import dataclasses
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mlops_assets.settings import process_environment
from mlops_assets.training import trainer
from mlops_assets_tests.training import tiny

SAVES = (4, 8, 12, 16, 20, 24, 28, 32, 36)


def weights(model: torch.nn.Module) -> list[np.ndarray]:
    return [tensor.numpy() for tensor in model.state_dict().values()]


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def killed(workdir: Path, point: str, epochs: float = tiny.RECIPE.epochs) -> None:
    """Train in another process that kills itself (SIGKILL) at `point`."""
    command = [sys.executable, "-m", "mlops_assets_tests.training.tiny", str(workdir), str(epochs)]
    run = subprocess.run(command, env=process_environment() | {"MLOPS_CRASH_AT": point}, capture_output=True, text=True, timeout=120)
    assert run.returncode == -signal.SIGKILL, run.stderr


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, trainer.Fitted]:
    model = tiny.network()
    return model, tiny.fit(tmp_path_factory.mktemp("unbroken"), model)


@pytest.fixture
def half_way(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A workdir as a run leaves it that was killed after two checkpoints (steps 4 and 8)."""
    work = tmp_path / "half"
    shutil.copytree(request.getfixturevalue("killed_at_9"), work)
    return work


@pytest.fixture(scope="module")
def killed_at_9(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("killed")
    killed(work, "trainer.step_9")
    return work


# --- kills ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "resumed_from"),
    [("trainer.step_3", None), ("trainer.aside_8", 4), ("trainer.saved_12", 12), ("trainer.step_31", 28), ("trainer.saved_36", 36)],
)
def test_killed_run_ends_with_the_weights_of_an_unbroken_one(
    tmp_path: Path, unbroken: tuple[torch.nn.Module, trainer.Fitted], point: str, resumed_from: int | None
) -> None:
    killed(tmp_path, point)
    model = tiny.network()
    resumed = tiny.fit(tmp_path, model)
    assert resumed.resumed_from_step == resumed_from
    assert resumed.steps == unbroken[1].steps == SAVES[-1]
    assert same(model, unbroken[0])
    assert resumed.best_step == unbroken[1].best_step
    assert resumed.metrics["loss"] == unbroken[1].metrics["loss"]


def test_a_run_killed_after_its_last_checkpoint_is_not_trained_further(tmp_path: Path) -> None:
    """Of one epoch and a half: the second is begun and not ended at the last step."""
    recipe = dataclasses.replace(tiny.RECIPE, epochs=1.5)
    whole, model = tiny.network(), tiny.network()
    unbroken = tiny.fit(tmp_path / "unbroken", whole, recipe=recipe)
    killed(tmp_path / "killed", "trainer.saved_18", recipe.epochs)
    resumed = tiny.fit(tmp_path / "killed", model, recipe=recipe)
    assert (resumed.resumed_from_step, resumed.steps, unbroken.steps) == (18, 18, 18)
    assert (resumed.best_step, resumed.metrics["loss"]) == (unbroken.best_step, unbroken.metrics["loss"])
    assert same(model, whole)


def test_a_run_that_was_out_of_time_is_not_trained_further(tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny.RECIPE, max_minutes=1e-6, checkpoints_per_epoch=tiny.STEPS_PER_EPOCH)
    for resumed_from in (None, 1):
        fitted = tiny.fit(tmp_path, recipe=recipe)
        assert (fitted.stopped, fitted.steps, fitted.resumed_from_step) == ("max_minutes", 1, resumed_from)


def test_control_without_the_random_state_a_resumed_run_ends_elsewhere(
    half_way: Path, unbroken: tuple[torch.nn.Module, trainer.Fitted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer._trainer_class(), "_load_rng_state", lambda self, checkpoint: None)
    model = tiny.network()
    assert tiny.fit(half_way, model).resumed_from_step == 8
    assert not same(model, unbroken[0])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "progress.json", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing"])
def test_damaged_newest_checkpoint_is_skipped(half_way: Path, name: str, damage: str) -> None:
    checkpoint = half_way / "checkpoints" / "step-8"
    path = checkpoint / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        content[len(content) // 2] ^= 1
        path.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    found, skipped = trainer.newest_verified(half_way / "checkpoints", "tiny")
    assert found is not None and found.name == "step-4"
    assert len(skipped) == 1 and skipped[0].startswith("step-8: ")
    assert not checkpoint.exists()


def test_training_goes_on_from_the_older_checkpoint(half_way: Path, unbroken: tuple[torch.nn.Module, trainer.Fitted]) -> None:
    (half_way / "checkpoints" / "step-8" / "optimizer.pt").write_bytes(b"")
    model = tiny.network()
    fitted = tiny.fit(half_way, model)
    assert fitted.resumed_from_step == 4
    assert len(fitted.skipped_checkpoints) == 1
    assert same(model, unbroken[0])


def test_control_a_checkpoint_written_in_place_is_lost(tmp_path: Path) -> None:
    """What ours must not be: the file under its final name while it is written, taken by name when training resumes."""
    weights = {"w": torch.zeros(1000)}
    for step in (4, 8):
        (tmp_path / f"step-{step}").mkdir()
        save_file(weights, tmp_path / f"step-{step}" / "model.safetensors")
    half = tmp_path / "step-8" / "model.safetensors"
    half.write_bytes(half.read_bytes()[:500])  # the kill came here
    newest = trainer.checkpoints(tmp_path)[0]
    with pytest.raises(SafetensorError):
        load_file(newest / "model.safetensors")
    found, _ = trainer.newest_verified(tmp_path, "tiny")
    assert found is None, "without a manifest nothing verifies"


def test_checkpoint_of_another_training_is_not_resumed(half_way: Path) -> None:
    fitted = tiny.fit(half_way, fingerprint="another")
    assert fitted.resumed_from_step is None
    assert all("another training" in reason for reason in fitted.skipped_checkpoints) and fitted.skipped_checkpoints


def test_close_removes_the_checkpoints_and_nothing_else(half_way: Path) -> None:
    (half_way / "kept").touch()
    trainer.close(half_way)
    assert [path.name for path in half_way.iterdir()] == ["kept"]
    trainer.close(half_way)


def test_few_checkpoints_are_kept(tmp_path: Path) -> None:
    tiny.fit(tmp_path)
    assert [path.name for path in trainer.checkpoints(tmp_path / "checkpoints")] == ["step-36", "step-32"]


def test_early_stop_is_not_forgotten_by_a_kill(tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny.RECIPE, early_stopping_patience=1, evaluations_per_epoch=3)

    def worse_and_worse(logits: np.ndarray, labels: np.ndarray, calls: list[int] = []) -> dict[str, float]:  # noqa: B006
        calls.append(0)
        return {"accuracy": 1 / len(calls)}

    first = tiny.fit(tmp_path, recipe=recipe, measured=worse_and_worse)
    assert (first.stopped, first.steps, first.best_step) == ("early_stopping", 8, 4)
    again = tiny.fit(tmp_path, recipe=recipe, measured=worse_and_worse)
    assert (again.stopped, again.steps, again.best_step) == ("early_stopping", 8, 4)


def test_reached_targets_are_not_forgotten_by_a_kill(tmp_path: Path) -> None:
    """They end the run with that moment's weights, although an earlier moment was better on the monitored figure."""
    recipe = dataclasses.replace(tiny.RECIPE, evaluations_per_epoch=3, targets={"loss": 0.5, "f1": 0.9})
    figures = [{"accuracy": 0.9, "loss": 0.4, "f1": 0.8}, {"accuracy": 0.8, "loss": 0.5, "f1": 0.9}]

    def told(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return figures.pop(0)

    first = tiny.fit(tmp_path, recipe=recipe, measured=told)
    assert (first.stopped, first.steps, first.best_step) == (trainer.TARGETS_REACHED, 8, 8)
    again = tiny.fit(tmp_path, recipe=recipe, measured=told)
    assert (again.stopped, again.steps, again.best_step) == (trainer.TARGETS_REACHED, 8, 8)


def test_patience_starts_anew_when_any_watched_figure_improves_enough(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        tiny.RECIPE, early_stopping_patience=2, evaluations_per_epoch=3, watched={"loss": 0.1, "accuracy": 0.1}, monitor="loss"
    )
    losses, accuracies = iter((0.9, 0.85, 0.9, 0.89, 0.88)), iter((0.5, 0.5, 0.62, 0.65, 0.69))
    fitted = tiny.fit(tmp_path, recipe=recipe, measured=lambda *_: {"loss": next(losses), "accuracy": next(accuracies)})
    assert (fitted.stopped, fitted.steps) == ("early_stopping", 20), "the third evaluation improves accuracy enough, then two do not"
    assert fitted.best_step == 8, "the least loss"


# --- the run --------------------------------------------------------------------------------------------------------------------


def test_it_learns(unbroken: tuple[torch.nn.Module, trainer.Fitted]) -> None:
    assert unbroken[1].metrics["accuracy"] > 0.85
    assert unbroken[1].stopped == "finished"
    assert not unbroken[0].training


def test_two_runs_of_one_seed_are_equal_and_of_another_differ(tmp_path: Path, unbroken: tuple[torch.nn.Module, trainer.Fitted]) -> None:
    again, other = tiny.network(), tiny.network()
    tiny.fit(tmp_path / "again", again)
    tiny.fit(tmp_path / "other", other, seed=1)
    assert same(again, unbroken[0])
    assert not same(other, unbroken[0])


def test_each_row_is_trained_on_once_an_epoch(tmp_path: Path) -> None:
    rows = tiny.Numbers()
    tiny.fit(tmp_path, train=rows)
    steps = tiny.STEPS_PER_EPOCH
    for epoch in range(3):
        asked = rows.asked[epoch * steps : (epoch + 1) * steps]
        assert sorted(row for batch in asked for row in batch) == list(range(tiny.ROWS))
    assert rows.asked[:steps] != rows.asked[steps : 2 * steps]


def test_early_stopping_keeps_the_best_moment(tmp_path: Path) -> None:
    """Validation peaks at the third evaluation (step 18) and falls from there."""
    peak: list[torch.nn.Module] = []
    calls: list[int] = []
    model = tiny.network()

    def peaked(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        calls.append(0)
        if len(calls) == 3:
            peak.append(tiny.network())
            peak[0].load_state_dict(model.state_dict())
        return {"accuracy": -abs(len(calls) - 3)}

    recipe = dataclasses.replace(tiny.RECIPE, early_stopping_patience=2, epochs=10)
    fitted = tiny.fit(tmp_path, model, recipe=recipe, measured=peaked)
    assert (fitted.stopped, fitted.best_step, fitted.steps) == ("early_stopping", 18, 30)
    assert same(model, peak[0])


def test_control_with_more_patience_it_goes_on(tmp_path: Path) -> None:
    fitted = tiny.fit(tmp_path, measured=lambda logits, labels: {"accuracy": 0.5})
    assert (fitted.stopped, fitted.steps) == ("finished", 36)


def test_nan_is_never_the_best(tmp_path: Path) -> None:
    values = iter([float("nan"), 0.5] + [float("nan")] * 10)
    fitted = tiny.fit(tmp_path, measured=lambda logits, labels: {"accuracy": next(values)})
    assert fitted.best_step == 12


def test_a_run_that_diverged_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    recipe = dataclasses.replace(tiny.RECIPE, optimizer_type="sgd", learning_rate=1e30, max_grad_norm=0)
    message = r"the training diverged: in 36 steps the validation accuracy was never a number\..*lower learning_rate than 1e\+30"
    with pytest.raises(trainer.Diverged, match=message):
        tiny.fit(tmp_path, recipe=recipe)
    assert not list(tmp_path.iterdir()), "no checkpoint that the next run would go on from"


def test_loss_is_minimized(tmp_path: Path) -> None:
    values = iter([0.5, 0.2, 0.4, 0.3, 0.6, 0.7])
    fitted = tiny.fit(
        tmp_path, recipe=dataclasses.replace(tiny.RECIPE, monitor="loss"), measured=lambda logits, labels: {"loss": next(values)}
    )
    assert fitted.best_step == 12


def test_out_of_time_stops_and_still_gives_a_measured_model(tmp_path: Path) -> None:
    fitted = tiny.fit(tmp_path, recipe=dataclasses.replace(tiny.RECIPE, max_minutes=1e-6))
    assert fitted.stopped == "max_minutes"
    assert fitted.steps == fitted.best_step == 1
    assert "loss" in fitted.metrics


@pytest.mark.parametrize("name", trainer.OPTIMIZERS)
def test_each_optimizer_trains(tmp_path: Path, name: str) -> None:
    model = tiny.network()
    tiny.fit(tmp_path, model, recipe=dataclasses.replace(tiny.RECIPE, optimizer_type=name, epochs=1))
    assert not same(model, tiny.network())


def test_unknown_optimizer_lists_the_choices(tmp_path: Path) -> None:
    with pytest.raises(trainer.UnsupportedOptimizer, match=r"지원되지 않는 옵티마이저 타입입니다\.: lion .*adamw, adam, sgd, adafactor"):
        tiny.fit(tmp_path, recipe=dataclasses.replace(tiny.RECIPE, optimizer_type="lion"))


def test_no_rows_is_an_error_that_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 rows to train on"):
        tiny.fit(tmp_path, train=tiny.Numbers(0))


def test_metrics_reach_the_log_and_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told: list[tuple[int, Mapping[str, float]]] = []
    tiny.fit(tmp_path, log_dir=tmp_path / "logs", log_metrics=lambda values, step: told.append((step, values)))
    names = {name for _, values in told for name in values}
    assert {"loss", "learning_rate", "validation_accuracy", "validation_loss"} <= names
    assert max(step for step, _ in told) == 36
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [event.step for event in events.Scalars("validation_accuracy")] == [6, 12, 18, 24, 30, 36]


def test_threads_are_given_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    tiny.fit(tmp_path, recipe=dataclasses.replace(tiny.RECIPE, epochs=0.1))
    assert torch.get_num_threads() == before


# --- batches --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
@pytest.mark.parametrize("bucketed", [True, False])
def test_batches_hold_each_row_once(rows: int, bucketed: bool) -> None:
    lengths = np.random.default_rng(0).integers(3, 49, rows)
    batches = trainer.LengthBatches(rows, 8, 0, lengths if bucketed else None)
    seen = list(batches)
    assert len(seen) == len(batches)
    assert sorted(row for batch in seen for row in batch) == list(range(rows))
    assert list(batches) == seen, "one epoch is one order"
    batches.set_epoch(1)
    assert rows <= 8 or list(batches) != seen


def test_bucketed_batches_waste_little_on_padding() -> None:
    lengths = np.random.default_rng(0).integers(3, 49, 10_000)

    def waste(batches: trainer.LengthBatches) -> float:
        return sum(lengths[batch].max() * len(batch) for batch in batches) / lengths.sum() - 1

    assert waste(trainer.LengthBatches(10_000, 64, 0, lengths)) < 0.05
    assert waste(trainer.LengthBatches(10_000, 64, 0)) > 0.5


def test_ranks_share_the_batches_without_overlap() -> None:
    lengths = np.arange(100)
    ranks = [list(trainer.LengthBatches(100, 8, 0, lengths, rank=rank, world=2)) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [6, 6]
    rows = [row for batches in ranks for batch in batches for row in batch]
    assert len(rows) == len(set(rows))


def test_a_run_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[trainer.Beat] = []
    tiny.fit(tmp_path / "often", beat=beats.append)
    assert [beat.step for beat in beats][:1] == [1], "at the first step, then every few seconds"
    monkeypatch.setattr(trainer, "BEAT_SECONDS", 0.0)
    beats.clear()
    fitted = tiny.fit(tmp_path / "always", beat=beats.append)
    assert [beat.step for beat in beats] == list(range(1, fitted.steps + 1)) and {beat.steps for beat in beats} == {fitted.steps}
    assert beats[-1].seconds_left == 0.0 and beats[0].seconds_left > 0 and beats[-1].loss is not None
    assert trainer.Beat(3, 9, None, 100.0).sentence() == "step 3 of 9, at most about 2 min left"
