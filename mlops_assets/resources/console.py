"""What a command shows of the run that it executes itself: a line for each step, the steps' own words, why something was refused.

Belongs here: choosing and wording Dagster's log records for a terminal. Does not belong here: what is kept of a run: that is Dagster's
event log.
"""

from __future__ import annotations

import logging
from typing import Any

import dagster as dg

from mlops_assets.lifecycle.assets import REFUSAL

#: In a run's configuration: it uses `terminal_logger`. Without it a run has Dagster's own.
ON_A_TERMINAL: dict[str, Any] = {"loggers": {"terminal": {}}}


@dg.logger(config_schema={}, description="A line for each step; a stack trace only of what broke.")
def terminal_logger(context: dg.InitLoggerContext) -> logging.Logger:
    handler = logging.StreamHandler()
    handler.addFilter(_worded)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(said)s", datefmt="%H:%M:%S"))
    logger = logging.Logger("mlops", logging.DEBUG)  # the level of Dagster's events
    logger.addHandler(handler)
    return logger


#: Of a code location: its runs on servers keep Dagster's console.
LOGGERS = {"console": dg.colored_console_logger, "terminal": terminal_logger}


def _worded(record: logging.LogRecord) -> bool:
    """Puts what is shown of the record into `record.said`; False: nothing is."""
    meta: dict[str, Any] = getattr(record, "dagster_meta", {})
    event, step = meta.get("dagster_event"), meta.get("step_key") or ""
    said = _of_event(event) if event is not None else _of_words(record, meta)
    record.said = f"{step.replace('__', '/')}: {said}" if step and said else said
    return bool(said)


def _of_words(record: logging.LogRecord, meta: dict[str, Any]) -> str:
    """What a step said itself. That a step is skipped because one before it failed says nothing new."""
    words = str(meta.get("orig_message") or record.getMessage())
    return words if record.levelno >= logging.INFO and not words.startswith("Dependencies for step") else ""


def _of_event(event: dg.DagsterEvent) -> str:
    kind = event.event_type
    if kind == dg.DagsterEventType.STEP_START:
        return "begins"
    if kind == dg.DagsterEventType.STEP_SUCCESS:
        return f"done in {event.step_success_data.duration_ms / 1000:.1f} s"
    if kind == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
        found = event.asset_check_evaluation_data
        return "" if found.passed else f"{found.check_name}: {found.description or 'not passed'}"
    if kind == dg.DagsterEventType.STEP_FAILURE:
        return _of_failure(event)
    return ""


def _of_failure(event: dg.DagsterEvent) -> str:
    """Of what was refused the sentence alone; of a check nothing, it has spoken; of what broke the stack trace, too."""
    data = event.step_failure_data
    given, error = data.user_failure_data, data.error
    if error and error.cls_name == "DagsterAssetCheckFailedError":
        return ""
    if given and REFUSAL in given.metadata:
        return given.description or "refused"
    cause = (error.cause or error) if error else None  # the step's own error, not Dagster's around it
    return cause.to_string() if cause else (event.message or "failed")
