"""What the server tells Prometheus. A registry of its own, so that several servers (tests) live in one process.

Belongs here: names and labels of the series. Does not belong here: alert rules (`deploy/prometheus/`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from mlops_assets.lifecycle.promotion import Promotion
    from mlops_assets.serving.feedback import Given
    from mlops_assets.serving.models import Model

_LATENCY = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_ROUND = (1, 2, 4, 8, 16, 32, 64, 128, 256)
#: Why drawings are dropped when somebody tries to teach wrong digits.
DROPPED = ("wrong_mac", "near_duplicate", "user_cap")


class ServerMetrics:
    def __init__(self, channel: str) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter("mlops_requests", "Answered HTTP requests", ["route", "status"], registry=registry)
        self._latency = Histogram("mlops_request_seconds", "From headers to answer", ["route"], buckets=_LATENCY, registry=registry)
        self._inputs = Counter("mlops_inputs", "Inputs that a model answered", ["system", "version"], registry=registry)
        self._round_size = Histogram("mlops_round_inputs", "Inputs per round of the engine", buckets=_ROUND, registry=registry)
        self._round_seconds = Histogram("mlops_round_seconds", "Time per round of the engine", buckets=_LATENCY, registry=registry)
        self._waiting = Gauge("mlops_waiting_inputs", "Inputs that wait for the engine", registry=registry)
        self._served = Gauge("mlops_served_version", "Version that is served", ["system", "channel"], registry=registry)
        self._sequence = Gauge("mlops_promotion_sequence", "Promotion that is served", ["system", "channel"], registry=registry)
        self._swaps = Counter("mlops_swaps", "Changes of the served model", ["system"], registry=registry)
        self._refusals = Counter("mlops_promotions_refused", "Promotions that were not served", ["system", "code"], registry=registry)
        self._lost = Counter("mlops_answers_unrecorded", "Answers whose record could be kept nowhere", registry=registry)
        self._spool = Gauge("mlops_answers_spooled_bytes", "Answers waiting on disk for the database", registry=registry)
        self._ledger = Gauge("mlops_ledger_connected", "1 while the promotion ledger can be read", registry=registry)
        self._feedback = Counter("mlops_feedback", "Truths about answers", ["system", "version", "correct"], registry=registry)
        self._live = Gauge("mlops_live_accuracy", "Right answers among the latest truths", ["system", "version"], registry=registry)
        self._truths = Gauge("mlops_live_truths", "The latest truths, whoever was told them", ["system", "version"], registry=registry)
        # One-time codes: figures of digits, never which ones.
        version = ["version"]
        self._confirmed = Counter("mlops_otp_digits_confirmed", "Digits that a model read and a user confirmed", version, registry=registry)
        self._asked = Counter("mlops_otp_digits_asked_again", "Times that a digit was asked for again", version, registry=registry)
        self._corrected = Counter("mlops_otp_digits_corrected", "Confirmed digits that were first read wrong", version, registry=registry)
        self._held = Gauge("mlops_otp_drawings_held", "Drawings in memory, not verified yet", registry=registry)
        self._stored = Counter("mlops_otp_drawings_stored", "Drawings kept as labelled data", registry=registry)
        self._dropped = Counter("mlops_otp_drawings_dropped", "Drawings that were not kept", ["reason"], registry=registry)
        self._channel = channel
        for reason in DROPPED:
            self._dropped.labels(reason)

    def routes(self, patterns: Iterable[str]) -> None:
        """Begin the series of requests at 0: of a series that begins with its first failure, Prometheus sees no increase."""
        for route in patterns:
            for status in ("200", "500", "503"):
                self._requests.labels(route, status)

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.labels(route, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def answered(self, system: str, version: int, inputs: int) -> None:
        self._inputs.labels(system, str(version)).inc(inputs)

    def truth(self, given: Given) -> None:
        version = str(given.version)
        self._feedback.labels(given.system, version, "yes").inc(given.right)
        self._feedback.labels(given.system, version, "no").inc(given.wrong)
        self.live(given.system, given.version, given.live_accuracy, given.truths)

    def live(self, system: str, version: int, accuracy: float, truths: int) -> None:
        """What the database knows of a version, the same in every server."""
        self._truths.labels(system, str(version)).set(truths)
        if truths:
            self._live.labels(system, str(version)).set(accuracy)

    def round(self, inputs: int, seconds: float) -> None:
        self._round_size.observe(inputs)
        self._round_seconds.observe(seconds)

    def swapped(self, model: Model, promotion: Promotion) -> None:
        self._served.labels(model.system, self._channel).set(model.version)
        self._sequence.labels(model.system, self._channel).set(promotion.sequence)
        self._swaps.labels(model.system).inc()

    def refused(self, system: str, code: str) -> None:
        self._refusals.labels(system, code).inc()

    def lost(self, rows: int) -> None:
        self._lost.inc(rows)

    def digit(self, version: str, asked_again: int, corrected: bool | None) -> None:
        """One digit of a confirmed code. `version`: of the model, from a bounded set."""
        self._confirmed.labels(version).inc()
        self._asked.labels(version).inc(asked_again)
        self._corrected.labels(version).inc(corrected is True)

    def drawings_stored(self, count: int) -> None:
        self._stored.inc(count)

    def drawings_dropped(self, reason: str, count: int) -> None:
        self._dropped.labels(reason).inc(count)

    def gauges(self, waiting: int, spooled_bytes: int, ledger_connected: bool, drawings_held: int) -> None:
        self._held.set(drawings_held)
        self._waiting.set(waiting)
        self._spool.set(spooled_bytes)
        self._ledger.set(int(ledger_connected))

    def text(self) -> bytes:
        return generate_latest(self.registry)
