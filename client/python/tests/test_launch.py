"""Clients that `pangea launch` starts, as people install them, against a real node with a real model."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
from serving import MODEL, Serving, node_with

SYSTEM = "Answer the question."


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with node_with() as serving:
        yield serving


def test_llm_answers_and_keeps_its_own_settings(serving: Serving, tmp_path: pathlib.Path) -> None:
    tools = pathlib.Path(sys.executable).parent
    if not shutil.which("llm", path=str(tools)):
        pytest.skip("SKIPPED: the llm package is not installed")
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{tools}:{os.environ['PATH']}"}
    # With a settings folder of its own, nothing comes from the environment of whoever runs the tests.
    environment.pop("LLM_USER_PATH", None)
    command = [os.environ["PANGEA_BIN"], "launch", "llm", "--data-dir", serving.data_dir]
    shown = subprocess.run([*command, "--print"], env=environment, capture_output=True, text=True, check=True).stdout
    assert f"{serving.url}/v1" in shown and MODEL in shown and shown.endswith("llm\n")
    asked = ["What is the capital of France?", "-s", SYSTEM, "-o", "temperature", "0", "-o", "max_tokens", "12"]
    answer = subprocess.run([*command, "--", *asked], env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0 and "Paris" in answer.stdout, answer.stderr
    assert not list(tmp_path.rglob("*.yaml")) and not list(tmp_path.rglob("logs.db")), "its own folder is untouched"
