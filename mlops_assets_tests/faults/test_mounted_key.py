"""The signing key as Kubernetes mounts a Secret: a link through `..data`, root's file, mode 0440 for the pod's fsGroup."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_assets import doctor
from mlops_assets.lifecycle import signing
from mlops_assets.settings import Settings, load_settings

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand a file to another account")
POD, FS_GROUP = 10001, 20002
# What is needed is imported before root is given up: the checkout may lie where only root gets.
_SIGN = """
import os, sys
from pathlib import Path
import nacl.signing
from mlops_assets.lifecycle import signing
from mlops_assets.settings import load_settings
settings = load_settings(home=Path(sys.argv[2]), signing_key=Path(sys.argv[3]), public_keys=Path(sys.argv[4]))
os.setgroups([int(group) for group in sys.argv[1].split()]); os.setgid({pod}); os.setuid({pod})
try:
    print(signing.load_signer(settings).key_id)
except signing.KeyProblem as problem:
    print("refused:", problem)
"""


@pytest.fixture
def secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with a key that is mounted as a Secret; below a folder that everybody may pass."""
    import tempfile

    made = load_settings(home=tmp_path / "made")
    signing.ensure_key(made)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        folder.chmod(0o755)
        mount = folder / "secret"
        version = mount / "..2026_11_30_21_00_00.1"
        version.mkdir(parents=True)
        shutil.copy(made.signing_key_path, version / "key")
        (mount / "..data").symlink_to(version.name)
        (mount / "key").symlink_to("..data/key")
        os.chown(version / "key", 0, FS_GROUP)
        (version / "key").chmod(0o440)
        shutil.copytree(made.public_keys_path, folder / "public")
        yield load_settings(home=tmp_path / "home", signing_key=mount / "key", public_keys=folder / "public")


def pod(settings: Settings, *groups: int) -> str:
    """What a process of the pod's account finds."""
    arguments = [" ".join(map(str, groups)), "/tmp", str(settings.signing_key_path), str(settings.public_keys_path)]
    done = subprocess.run([sys.executable, "-c", _SIGN.format(pod=POD), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def key_id(settings: Settings) -> str:
    (public,) = settings.public_keys_path.glob("*.pub")
    return public.stem


def test_the_pods_group_reads_the_key(secret: Settings) -> None:
    assert pod(secret, FS_GROUP) == key_id(secret)


@pytest.mark.parametrize(
    ("mode", "owner", "why"),
    [
        (0o444, 0, "can be read by others"),
        (0o460, 0, "can be read by others"),
        (0o440, POD, "can be read by others"),  # its owner may give it to anybody
        (0o400, 0, "cannot be read"),
    ],
)
def test_what_others_may_read_or_we_may_not_is_refused_with_the_fix(secret: Settings, mode: int, owner: int, why: str) -> None:
    os.chown(secret.signing_key_path, owner, FS_GROUP)
    secret.signing_key_path.chmod(mode)
    said = pod(secret, FS_GROUP)
    assert said.startswith("refused:") and why in said and ("chmod 600" in said or "fsGroup" in said)


def test_a_group_that_is_not_ours_is_others(secret: Settings) -> None:
    assert "can be read by others" in _as_root(secret)


def _as_root(settings: Settings) -> str:
    """This process is root, whose groups do not have the pod's among them."""
    assert FS_GROUP not in os.getgroups()
    with pytest.raises(signing.KeyProblem) as refused:
        signing.load_signer(settings)
    return str(refused.value)


def test_doctor_says_who_reads_it(secret: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getgroups", lambda: [FS_GROUP])
    (line,) = doctor._key(secret)
    assert line.state == "ok" and f"mode 0440: root's, and readable by the group {FS_GROUP}" in line.found
    monkeypatch.undo()
    (line,) = doctor._key(secret)
    assert line.state == "fail" and line.fix.startswith("chmod 600")


def test_a_mounted_key_is_not_rotated_here(secret: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = secret.signing_key_path.read_bytes()
    with pytest.raises(signing.KeyProblem, match=r"is a link to \.\.data/key.*in the Secret"):
        signing.rotate_key(secret)
    assert secret.signing_key_path.is_symlink() and secret.signing_key_path.read_bytes() == before
    (secret.signing_key_path.parent / "..data").unlink()  # between two versions of the Secret
    with pytest.raises(signing.KeyProblem):
        signing.ensure_key(secret)
    assert secret.signing_key_path.is_symlink()
