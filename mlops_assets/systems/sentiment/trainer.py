"""`ModelTrainer`: training from Python with the parameters, prompts and results that the team's train.py had, on the platform's own path.

Belongs here: that shell. What trains is the Dagster job `sentiment_train`, so event log, attempt and report are as ever.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlops_assets.lifecycle import bundle, ledger, pipeline
from mlops_assets.lifecycle.actor import of_command
from mlops_assets.lifecycle.system import CleanedTable
from mlops_assets.settings import Settings, load_config, load_settings, merge, read_yaml
from mlops_assets.systems.sentiment.config import SentimentConfig

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerFast


class TrainingFailed(RuntimeError):
    """The run ended without an attempt. The message has its reason."""


@dataclass(frozen=True)
class DataModule:
    """The cleaned reviews that the model was trained and measured on."""

    table: CleanedTable

    def frame(self, split: str) -> pd.DataFrame:
        """Rows of train, validation or holdout: id, document, label (0 부정, 1 긍정), split, source."""
        import pandas as pd

        return pd.read_parquet(self.table.folder, filters=[("split", "==", split)])


class ModelTrainer:
    """Trains on the newest dataset version of the configured data set; fetches the official data when none has landed.

    Args:
        config_path: a configuration file; default `configs/sentiment.yaml`.
        model_name: one of its `models`; default `project.model`.
        dataset_name: one of its `datasets`; default `project.dataset`.
        sampling_rate: fraction of the training rows; default the data set's.
        interactive: ask on the terminal whether to register, and as what.
        reset_mlflow: first delete the embedded MLflow's runs that no receipt points to.
    """

    def __init__(
        self,
        config_path: str | Path | None = None,
        model_name: str | None = None,
        dataset_name: str | None = None,
        sampling_rate: float | None = None,
        interactive: bool = False,
        reset_mlflow: bool = False,
        *,
        settings: Settings | None = None,
        ask: Callable[[str], str] = input,
        say: Callable[[str], object] = print,
    ) -> None:
        self.settings = settings or load_settings()
        self.interactive = interactive
        self.reset_mlflow = reset_mlflow
        self._ask = ask
        self._say = say
        path = Path(config_path) if config_path else self.settings.configs / "sentiment.yaml"
        project = {name: value for name, value in (("model", model_name), ("dataset", dataset_name)) if value is not None}
        self._values = merge(read_yaml(path), {"project": project})
        if sampling_rate is not None:
            name = self._values["project"]["dataset"]
            self._values = merge(self._values, {"datasets": {name: {"sampling_rate": sampling_rate}}})
        with self._configured() as settings_of_run:
            self.config = load_config(SentimentConfig, "sentiment", settings_of_run.configs)

    @contextmanager
    def _configured(self) -> Iterator[Settings]:
        """Settings whose configs/ holds this trainer's configuration."""
        with tempfile.TemporaryDirectory() as folder:
            for path in self.settings.configs.glob("*.yaml"):  # the definitions need every system's
                shutil.copy(path, folder)
            (Path(folder) / "sentiment.yaml").write_text(yaml.safe_dump(self._values, allow_unicode=True), encoding="utf-8")
            yield self.settings.model_copy(update={"configs": Path(folder)})

    def train_model(self, dataset_version: str | None = None) -> dict[str, Any]:
        """Train, evaluate and, when interactive, register.

        Returns:
            `run_id` (MLflow's, or Dagster's when MLflow is away), `metrics` (on the holdout), `run_name`, `model` (torch), `tokenizer`,
            `data_module`.

        Raises:
            TrainingFailed: the run ended without a report. A model under its threshold still returns: only registering refuses it.
        """
        from mlops_assets.jobs import run_job

        platform = pipeline.connect(self.settings)
        if self.reset_mlflow:
            deleted = reset_tracking(platform)
            self._say(f"MLflow: {deleted} runs deleted / MLflow 실행 {deleted}개를 삭제하였습니다.")
        version = dataset_version or self._version(platform)
        with self._configured() as settings:
            outcome = run_job(settings, "sentiment_train", partition=version)
            with platform.engine.connect() as connection:
                value = ledger.get_value(
                    connection, "sentiment/evaluation_report", version, outcome.run_id, platform.settings.public_keys_path
                )
            if value is None or (not outcome.success and not outcome.refused):
                raise TrainingFailed(f"run {outcome.run_id} on {version} failed: {outcome.reason}")
            with platform.engine.connect() as connection:
                attempt = ledger.attempt(connection, value["attempt_id"], platform.settings.public_keys_path)
                report = ledger.report(connection, value["report_id"], platform.settings.public_keys_path)
            assert report is not None
            if self.interactive:
                self._register(settings, platform, version, outcome.reason if outcome.refused else None)
        return {
            "run_id": attempt.mlflow_run_id or outcome.run_id,
            "metrics": dict(report.metrics),
            "run_name": f"{version}/{attempt.fingerprint[:8]}",
            **self._loaded(platform, attempt),
        }

    def _version(self, platform: pipeline.Platform) -> str:
        """The newest version that may be trained on and has files of the configured data set; without one, its official data is fetched
        and landed. Cleaned by another data set's rules a version would lose every row, and be refused for all."""
        from sqlalchemy import text

        from mlops_assets.systems.sentiment.data import reader_of

        section = self.config.datasets[self.config.project.dataset]
        with platform.engine.connect() as connection:
            landed = connection.execute(
                text(
                    "SELECT v.version, o.key FROM dataset_version v JOIN landing_object o USING (system, version) "
                    "WHERE v.system = 'sentiment' AND v.state IN ('closed', 'frozen') ORDER BY v.first_seen_at DESC, v.version"
                )
            ).all()
        for version, key in landed:
            if reader_of(section, key.rsplit("/", 1)[-1]) is not None:
                return str(version)
        from mlops_assets.ingest.objects import land, tick
        from mlops_assets.ingest.official import pull

        name = self.config.project.dataset
        folder = pull(self.settings, name).folder
        land(self.settings, platform.store, "sentiment", folder, f"{name}-official")
        tick(platform.engine, platform.store, "sentiment", settle_seconds=self.settings.settle_seconds)
        return f"{name}-official"

    def _loaded(self, platform: pipeline.Platform, attempt: ledger.Attempt) -> dict[str, Any]:
        from transformers import AutoModelForSequenceClassification

        folder = self.settings.home / "models" / attempt.bundle_sha256[:16]
        bundle.fetch_weights(platform.store, attempt.bundle_sha256, attempt.weights_files, folder)
        from mlops_assets.systems.sentiment.data import load_cleaned

        table = load_cleaned(platform.store, platform.engine, attempt.dataset_version, folder / "table")
        return {
            "model": AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True),
            "tokenizer": _tokenizer(folder),
            "data_module": DataModule(table),
        }

    def _register(self, settings: Settings, platform: pipeline.Platform, version: str, refused: str | None) -> None:
        """The seed's two questions: register? as what?"""
        from mlops_assets.jobs import run_job
        from mlops_assets.lifecycle.registrar import Refused, Registrar

        if refused is not None:
            self._say(f"최소값을 넘지 못해 모델 등록에 실패하였습니다. / refused: {refused}")
            return
        if not _yes(self._ask("모델을 레지스트리에 등록하시겠습니까? / Register the model? (y/n): ")):
            return
        outcome = run_job(settings, "sentiment_register", partition=version)
        if not outcome.success:
            self._say(f"최소값을 넘지 못해 모델 등록에 실패하였습니다. / {outcome.reason}")
            return
        self._say("최소값을 넘겨 모델 등록에 성공하였습니다. / registered")
        with platform.engine.connect() as connection:
            value = ledger.get_value(connection, "sentiment/registered_model", version, outcome.run_id, platform.settings.public_keys_path)
        assert value is not None
        choice = self._ask("모델 단계를 선택하세요 / Choose its alias: 1. candidate  2. champion  3. archive (none): ").strip()
        registrar = Registrar(platform.engine, settings, self.config, actor=of_command())
        try:
            if choice == "1":
                registrar.stage(version=value["version"], reason="chosen interactively")
            elif choice == "2":
                registrar.produce(version=value["version"], reason="chosen interactively")
        except Refused as error:
            self._say(str(error))


def reset_tracking(platform: pipeline.Platform) -> int:
    """Delete the MLflow runs of sentiment that no receipt points to; returns how many.

    Raises:
        ValueError: the MLflow server is not the embedded one: other people's runs are not ours to delete.
    """
    import json

    from sqlalchemy import text

    from mlops_assets.settings import SERVICES_FILE

    settings = platform.settings
    file = settings.home / SERVICES_FILE
    running = json.loads(file.read_text()) if file.exists() else {}
    # The address alone proves nothing: `mlops up` publishes one that it was given, too.
    if running.get("own_mlflow") is not True or settings.mlflow_tracking_uri != running["mlflow_tracking_uri"]:
        raise ValueError("reset_mlflow empties only the MLflow that `mlops up` started; yours is elsewhere, delete runs in its own UI")
    with platform.engine.connect() as connection:
        kept = set(connection.execute(text("SELECT a.mlflow_run_id FROM attempt a JOIN receipt r ON r.attempt_id = a.id")).scalars())
    client = platform.tracking.client
    experiment = client.get_experiment_by_name("sentiment")
    if experiment is None:
        return 0
    runs = [run.info.run_id for run in client.search_runs([experiment.experiment_id], max_results=5000)]
    for run_id in (gone := [run_id for run_id in runs if run_id not in kept]):
        client.delete_run(run_id)
    return len(gone)


def _yes(answer: str) -> bool:
    return answer.strip().lower() in ("y", "yes", "예", "ㅛ")


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """That of the model to the letter: `AutoTokenizer` would lay BERT's own normalization over it, which takes Hangul apart."""
    from transformers import PreTrainedTokenizerFast

    from mlops_assets.training.text import SPECIAL

    roles = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(roles, SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)  # type: ignore[no-untyped-call]
