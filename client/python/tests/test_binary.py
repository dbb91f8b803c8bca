"""Which `pangea` program the package finds. No node runs here."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import pangea


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "programs" / ("pangea" + (sysconfig.get_config_var("EXE") or ""))
    path.parent.mkdir()
    path.write_text("#!/bin/sh\necho it runs: $1\n")
    path.chmod(0o755)
    return path


def installed_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Has installers put programs into `folder`."""
    monkeypatch.setattr("pangea._binary._folders", lambda: iter([folder]))


def test_the_named_program_is_taken(monkeypatch: pytest.MonkeyPatch, program: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("PANGEA_BIN", str(program))
    assert pangea.find_binary() == str(program)
    (tmp_path / "text").write_text("")
    monkeypatch.setenv("PANGEA_BIN", str(tmp_path / "text"))
    with pytest.raises(pangea.NotFound, match="not a program"):
        pangea.find_binary()


def test_the_program_of_the_package_comes_before_the_path(
    monkeypatch: pytest.MonkeyPatch, program: Path, tmp_path: Path
) -> None:
    monkeypatch.delenv("PANGEA_BIN", raising=False)
    other = tmp_path / "other"
    other.mkdir()
    (other / program.name).write_text("#!/bin/sh\n")
    (other / program.name).chmod(0o755)
    monkeypatch.setenv("PATH", str(other))
    installed_in(monkeypatch, program.parent)
    assert pangea.find_binary() == str(program)
    program.chmod(0o644)
    assert pangea.find_binary() == str(other / program.name)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pangea.NotFound, match="put the program on the PATH"):
        pangea.find_binary()


@pytest.mark.skipif(os.name != "posix", reason="the program of this test is a shell script")
def test_the_module_runs_the_program(program: Path) -> None:
    command = [sys.executable, "-m", "pangea", "demo"]
    environment = {**os.environ, "PANGEA_BIN": str(program)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "it runs: demo\n")
    done = subprocess.run(command, env={**environment, "PANGEA_BIN": "/nowhere"}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: PANGEA_BIN is '/nowhere'")
