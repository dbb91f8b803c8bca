"""Programs that use tools, as people install them: each reads a file because the model asks for it, and says what the model answers.

The model's answers are known beforehand (`scripted_model`); all else is real: the node, the program, the call and its result.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest
import scripted_model
from serving import Serving, node_serving

FACT = "the blue key opens the shed"
FOUND = "According to your note, it is the blue key."
LOST = "I could not read your note."
NAME = "scripted"
QUESTION = "Which key opens the shed? It is written in note.txt."

READ_NOTE = {
    "type": "object",
    "properties": {"path": {"type": "string"}},
    "required": ["path"],
    "additionalProperties": False,
}


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with the note."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "note.txt").write_text(f"Remember: {FACT}.\n")
    return folder


@contextlib.contextmanager
def asking_for(tool: str, arguments: dict[str, object], folder: pathlib.Path) -> Iterator[Serving]:
    """A node whose model calls this tool once, then answers."""
    model = folder.parent / f"{NAME}.gguf"
    call = json.dumps({"name": tool, "arguments": arguments})
    scripted_model.write(model, name=NAME, call=call, fact=FACT, found=FOUND, lost=LOST)
    with node_serving(model) as serving:
        yield serving


def test_llm_calls_a_function_and_answers_with_its_result(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    tools = pathlib.Path(sys.executable).parent
    if not shutil.which("llm", path=str(tools)):
        pytest.skip("SKIPPED: the llm package is not installed")
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{tools}:{os.environ['PATH']}"}
    function = "def read_note(path: str) -> str:\n    return open(path).read()\n"
    with asking_for("read_note", {"path": "note.txt"}, folder) as serving:
        command = [os.environ["PANGEA_BIN"], "launch", "llm", "--data-dir", serving.data_dir, "--"]
        command += [QUESTION, "--functions", function, "--no-log"]
        answer = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0 and answer.stdout.strip() == FOUND, answer.stdout + answer.stderr


def test_the_sdks_read_a_call_that_the_model_chose(folder: pathlib.Path) -> None:
    openai = pytest.importorskip("openai", reason="SKIPPED: the openai package is not installed")
    anthropic = pytest.importorskip("anthropic", reason="SKIPPED: the anthropic package is not installed")
    ollama = pytest.importorskip("ollama", reason="SKIPPED: the ollama package is not installed")
    asked = [{"role": "user", "content": QUESTION}]
    wanted = {"path": "note.txt"}
    with asking_for("read_note", wanted, folder) as serving:
        note = (folder / "note.txt").read_text()
        function = {"type": "function", "function": {"name": "read_note", "parameters": READ_NOTE}}
        with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
            with client.chat.completions.stream(model=NAME, messages=asked, tools=[function]) as stream:
                message = stream.get_final_completion().choices[0].message
            call = message.tool_calls[0]
            assert (call.function.name, json.loads(call.function.arguments)) == ("read_note", wanted)
            said = [message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": note}]
            answer = client.chat.completions.create(model=NAME, messages=[*asked, *said], tools=[function])
            assert answer.choices[0].message.content == FOUND
            said[1]["content"] = "no such file"
            answer = client.chat.completions.create(model=NAME, messages=[*asked, *said], tools=[function])
            assert answer.choices[0].message.content == LOST, "the answer depends on the result"
        with anthropic.Anthropic(base_url=serving.url, api_key="none", max_retries=0) as client:

            @anthropic.beta_tool(name="read_note", description="Reads a note", input_schema=READ_NOTE)
            def read_note(path: str) -> str:
                return (folder / path).read_text()

            runner = client.beta.messages.tool_runner(model=NAME, max_tokens=100, messages=asked, tools=[read_note])
            assert runner.until_done().content[0].text == FOUND
        chat = ollama.Client(host=serving.url)
        message = chat.chat(model=NAME, messages=asked, tools=[function]).message
        assert message.tool_calls[0].function.arguments == wanted
        result = {"role": "tool", "tool_name": "read_note", "content": note}
        assert chat.chat(model=NAME, messages=[*asked, message, result], tools=[function]).message.content == FOUND


def installed(program: str) -> str:
    """The folder of a program that npm installs: that of `PANGEA_TEST_AGENTS`, else wherever it is found."""
    folder = os.environ.get("PANGEA_TEST_AGENTS")
    found = shutil.which(program, path=folder) or shutil.which(program)
    if not found:
        pytest.skip(f"SKIPPED: {program} is not installed")
    return str(pathlib.Path(found).parent)


def launched(program: str, arguments: list[str], serving: Serving, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Runs a coding agent in the folder, with a home of its own."""
    home = folder.parent / "home"
    home.mkdir()
    # Settings of whoever runs the tests stay out.
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR", "LANG")}
    environment = {**kept, "HOME": str(home), "PATH": f"{installed(program)}:{os.environ['PATH']}"}
    command = [os.environ["PANGEA_BIN"], "launch", program, "--data-dir", serving.data_dir, "--", *arguments]
    # An agent that is given a pipe reads it to its end.
    return subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180
    )


def test_codex_reads_a_file_and_answers(folder: pathlib.Path) -> None:
    installed("codex")
    with asking_for("exec_command", {"cmd": f"cat {folder}/note.txt"}, folder) as serving:
        # Its sandbox needs rights that a container may lack.
        flags = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
        answer = launched("codex", ["exec", *flags, QUESTION], serving, folder)
    assert answer.returncode == 0 and FOUND in answer.stdout, answer.stdout + answer.stderr


def test_claude_code_reads_a_file_and_answers(folder: pathlib.Path) -> None:
    installed("claude")
    with asking_for("Read", {"file_path": f"{folder}/note.txt"}, folder) as serving:
        answer = launched("claude", ["-p", QUESTION], serving, folder)
    assert answer.returncode == 0 and FOUND in answer.stdout, answer.stdout + answer.stderr


def test_opencode_reads_a_file_and_answers(folder: pathlib.Path) -> None:
    installed("opencode")
    with asking_for("read", {"filePath": f"{folder}/note.txt"}, folder) as serving:
        answer = launched("opencode", ["run", QUESTION], serving, folder)
    assert answer.returncode == 0 and FOUND in answer.stdout, answer.stdout + answer.stderr
