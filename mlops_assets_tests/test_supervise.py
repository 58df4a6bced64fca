"""Supervision with small real processes: restart, giving up, order of stopping, and nothing left behind, whoever is killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mlops_assets.supervise import MARK, Patience, Service, Supervisor, free_port, marked, sweep

QUICK = Patience(first_backoff=0.01, longest_backoff=0.05, restarts=2, stable=3600, stop=1.0)


def until(condition: Callable[[], object], seconds: float = 20, tick: Callable[[], object] = lambda: None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        tick()
        time.sleep(0.02)


@pytest.fixture
def said() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, said: list[tuple[str, str]]) -> Iterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "logs", lambda kind, text: said.append((kind, text)), QUICK)
    yield supervisor
    supervisor.stop(list(supervisor.children))


def python(name: str, code: str, **more) -> Service:
    more.setdefault("is_ready", lambda: True)
    return Service(name, [sys.executable, "-c", code], environment={**os.environ, **more.pop("environment", {})}, **more)


SLEEP = "import time; time.sleep(600)"


def test_a_killed_child_is_started_again(supervisor, said):
    child = supervisor.add(python("worker", SLEEP))
    until(lambda: child.ready, tick=supervisor.tick)
    first = child.process.pid
    os.kill(first, signal.SIGKILL)
    until(lambda: child.ready and child.process.pid != first, tick=supervisor.tick)
    assert any(kind == "warn" and "worker was killed by SIGKILL" in text and "worker.log" in text for kind, text in said)


def test_a_child_that_keeps_failing_is_told_of_with_the_end_of_its_log_and_never_given_up(supervisor, said, tmp_path):
    works = tmp_path / "works"
    code = (
        f"import pathlib, time\nif not pathlib.Path({str(works)!r}).exists(): print('no such table'); raise SystemExit(3)\ntime.sleep(600)"
    )
    child = supervisor.add(python("broken", code, is_ready=works.exists))
    until(lambda: child.failing, tick=supervisor.tick)
    assert child.failures == QUICK.restarts + 1
    assert supervisor.failed == ["broken"] and supervisor.settled
    kind, text = said[-1]
    assert kind == "fail" and "exit code 3" in text and "no such table" in text and "broken.log" in text and "tried again every" in text
    until(lambda: child.failures == 9, tick=supervisor.tick)
    assert [text.partition(",")[2][:3] for kind, text in said if kind == "fail"] == [" 3 ", " 4 ", " 8 "]  # less and less often
    works.touch()  # the disk has room again
    until(lambda: child.ready, tick=supervisor.tick)
    assert supervisor.failed == [] and said[-1][1].startswith("broken is ready")


def test_the_waits_between_restarts_grow_up_to_a_limit(supervisor, said):
    supervisor.patience = Patience(first_backoff=0.01, longest_backoff=0.04, restarts=20)
    child = supervisor.add(python("broken", "raise SystemExit(3)", is_ready=lambda: False))
    until(lambda: child.failures == 5, tick=supervisor.tick)
    assert [text.split(" in ")[1].split(" s ")[0] for _, text in said] == ["0.01", "0.02", "0.04", "0.04", "0.04"]


def test_while_what_it_needs_is_away_a_child_waits_and_says_so(supervisor, said, tmp_path):
    there = tmp_path / "there"
    there.touch()
    base = f"import pathlib, time\nwhile pathlib.Path({str(there)!r}).exists(): time.sleep(0.01)\nraise SystemExit(1)"
    database = supervisor.add(python("database", base, is_ready=there.exists, title="the database"))
    user = supervisor.add(python("user", f"{base[:-1]}7)", needs=["database"]))
    other = supervisor.add(python("other", SLEEP))
    until(lambda: user.ready and database.ready, tick=supervisor.tick)
    there.unlink()
    until(lambda: database.failures > QUICK.restarts + 3, tick=supervisor.tick)
    assert user.process is None and user.failures <= 1 and not user.failing and other.alive
    assert sum("waits for the database" in text for _, text in said) == 1
    there.touch()
    until(lambda: user.ready and database.ready, tick=supervisor.tick)


def test_a_log_is_rotated_while_it_is_written(supervisor, tmp_path):
    supervisor.patience = Patience(log_bytes=100_000)
    code = "import sys\nfor number in range(200_000): print(number, flush=True)\nimport time; time.sleep(600)"
    supervisor.add(python("talker", code))
    log, old = supervisor.log("talker"), supervisor.logs / "talker.log.1"
    before = supervisor._look_at_logs

    def look() -> None:
        supervisor._look_at_logs = before
        supervisor.tick()

    until(lambda: log.exists() and log.read_bytes().endswith(b"199999\n"), tick=look)
    look()
    assert old.exists() and log.stat().st_size < 1_000_000
    assert b"\0" not in log.read_bytes()  # its writer goes on at the new end
    assert b"199999\n" in old.read_bytes() + log.read_bytes()


def test_a_child_waits_for_what_it_comes_after(supervisor, tmp_path):
    flag = tmp_path / "ready"
    first = supervisor.add(python("first", SLEEP, is_ready=flag.exists))
    second = supervisor.add(python("second", SLEEP, after=["first"]))
    for _ in range(5):
        supervisor.tick()
    assert first.alive and second.process is None
    flag.touch()
    until(lambda: second.ready, tick=supervisor.tick)


def test_a_child_that_ignores_sigterm_is_killed(supervisor):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    child = supervisor.add(python("stubborn", stubborn, is_ready=lambda: "up" in supervisor.log("stubborn").read_text()))
    until(lambda: child.ready, tick=supervisor.tick)
    process = psutil.Process(child.process.pid)
    supervisor.stop(["stubborn"])
    assert not process.is_running()


def test_hurry_does_not_wait(supervisor):
    supervisor.patience = Patience(stop=600)
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    child = supervisor.add(python("stubborn", stubborn, is_ready=lambda: "up" in supervisor.log("stubborn").read_text()))
    until(lambda: child.ready, tick=supervisor.tick)
    process = psutil.Process(child.process.pid)
    supervisor.stop(["stubborn"], hurry=lambda: True)
    assert not process.is_running()


def test_a_child_can_be_interrupted_even_where_the_parent_ignores_sigint(supervisor):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a background job of a shell inherits
    try:
        child = supervisor.add(python("worker", SLEEP))
        until(lambda: child.ready, tick=supervisor.tick)
        name = f"/proc/{child.process.pid}"
        until(lambda: b"time.sleep" in Path(name, "cmdline").read_bytes() and b"-I" not in Path(name, "cmdline").read_bytes())
        ignored = int(next(line for line in Path(name, "status").read_text().splitlines() if line.startswith("SigIgn")).split()[1], 16)
        assert not ignored & 1 << (signal.SIGINT - 1)
    finally:
        signal.signal(signal.SIGINT, before)


# A supervisor in a process of its own with a child, whose own child is in another session, as a daemon would be; and a guard, where asked.
_PARENT = """
import os, sys, time
from pathlib import Path
from mlops_assets.supervise import MARK, Guard, Service, Supervisor
mark, folder, guarded = sys.argv[1], Path(sys.argv[2]), sys.argv[3] == "guarded"
grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)"
supervisor = Supervisor(folder, lambda *_: None)
guard = Guard(mark, folder / "services.json") if guarded else None
supervisor.add(Service("worker", [sys.executable, "-c", grandchild], lambda: True, environment={**os.environ, MARK: mark}))
while True:
    supervisor.tick()
    time.sleep(0.02)
"""


def _family(tmp_path: Path, mark: str, guarded: str) -> subprocess.Popen[bytes]:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT, mark, str(tmp_path), guarded])
    until(lambda: len(marked(mark)) == 2)  # child and grandchild
    return parent


def test_when_the_supervisor_is_killed_its_grandchildren_die_too(tmp_path):
    mark = f"{uuid.uuid4().hex}:{tmp_path}"
    (tmp_path / "services.json").write_text(f'{{"mark": "{mark}"}}')
    parent = _family(tmp_path, mark, "guarded")
    parent.kill()
    parent.wait()
    until(lambda: not marked(mark))
    until(lambda: not (tmp_path / "services.json").exists())


def test_control_without_the_guard_the_grandchild_would_live_on(tmp_path):
    mark = f"{uuid.uuid4().hex}:{tmp_path}"
    parent = _family(tmp_path, mark, "alone")
    parent.kill()
    parent.wait()
    try:
        until(lambda: len(marked(mark)) == 1)  # the child died with its parent, the grandchild did not
        assert len(marked(f"*:{tmp_path}")) == 1  # and the next start would find it by its home
    finally:
        assert sweep(mark) == 1
    assert not marked(mark)


def test_sweep_spares_other_sessions_and_other_marks(tmp_path):
    mark = uuid.uuid4().hex
    mine, spared = (
        subprocess.Popen([sys.executable, "-c", SLEEP], env={**os.environ, MARK: mark}, start_new_session=True) for _ in range(2)
    )
    other = subprocess.Popen([sys.executable, "-c", SLEEP], env={**os.environ, MARK: "other" + mark})
    try:
        until(lambda: len(marked(mark)) == 2)
        assert sweep(mark, spare=[spared.pid]) == 1
        assert mine.wait() == -signal.SIGKILL
        assert spared.poll() is None and other.poll() is None
    finally:
        for process in (mine, spared, other):
            process.kill()
            process.wait()


def test_a_taken_port_is_passed_over():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        taken: set[int] = set()
        assert free_port("127.0.0.1", port, taken) > port
        assert port not in taken and len(taken) == 1
