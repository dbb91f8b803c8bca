"""The SDKs of OpenAI (Responses), Anthropic and Ollama, unmodified, against a real node with a real model."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from serving import MODEL, Serving, node_with

openai = pytest.importorskip("openai", reason="SKIPPED: the openai package is not installed")
anthropic = pytest.importorskip("anthropic", reason="SKIPPED: the anthropic package is not installed")
ollama = pytest.importorskip("ollama", reason="SKIPPED: the ollama package is not installed")

QUESTION = "What is the capital of France?"
SYSTEM = "Answer the question."
MESSAGES = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def serving() -> Iterator[Serving]:
    with node_with() as serving:
        yield serving


def test_responses_plain_and_streamed(serving: Serving) -> None:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        asked = {"model": MODEL, "instructions": SYSTEM, "input": QUESTION, "max_output_tokens": 12, "temperature": 0}
        answer = client.responses.create(**asked)
        assert "Paris" in answer.output_text and answer.usage.output_tokens
        # The SDK puts the events together and checks that they fit.
        with client.responses.stream(**asked) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert final.output_text == answer.output_text
        assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]


def test_a_function_is_called_through_responses_and_its_result_is_read(serving: Serving) -> None:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        tool = {"type": "function", "name": "get_weather", "parameters": SCHEMA, "strict": True}
        conversation = [{"role": "user", "content": "The weather in Rome?"}]
        answer = client.responses.create(model=MODEL, input=conversation, tools=[tool], tool_choice="required")
        call = answer.output[0]
        assert call.type == "function_call" and json.loads(call.arguments)["city"] in ("Paris", "Rome")
        conversation += [call.model_dump(exclude_none=True)]
        conversation += [{"type": "function_call_output", "call_id": call.call_id, "output": "It rains frogs."}]
        answer = client.responses.create(model=MODEL, input=conversation, tools=[tool], max_output_tokens=24, temperature=0)
        assert answer.usage.input_tokens > 20


def test_messages_plain_streamed_and_counted(serving: Serving) -> None:
    with anthropic.Anthropic(base_url=serving.url, api_key="none", max_retries=0) as client:
        # Newer SDKs leave the sampling to the model.
        greedy = {"temperature": 0}
        asked = {"model": MODEL, "max_tokens": 12, "system": SYSTEM, "messages": MESSAGES, "extra_body": greedy}
        message = client.messages.create(**asked)
        assert "Paris" in message.content[0].text and message.stop_reason in ("end_turn", "max_tokens")
        with client.messages.stream(**asked) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        assert text == message.content[0].text and final.usage.output_tokens == message.usage.output_tokens
        counted = client.messages.count_tokens(model=MODEL, system=SYSTEM, messages=MESSAGES)
        assert counted.input_tokens == message.usage.input_tokens + message.usage.cache_read_input_tokens


def test_models_are_listed_for_both_sdks(serving: Serving) -> None:
    with anthropic.Anthropic(base_url=serving.url, api_key="none", max_retries=0) as client:
        models = list(client.models.list())
        assert [(model.id, model.display_name) for model in models] == [(MODEL, MODEL)]
        assert client.models.retrieve(MODEL) == models[0] and models[0].created_at.year > 2000
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [MODEL]


def test_a_tool_is_used_through_messages(serving: Serving) -> None:
    with anthropic.Anthropic(base_url=serving.url, api_key="none", max_retries=0) as client:
        tool = {"name": "get_weather", "description": "The weather", "input_schema": SCHEMA}
        conversation = [{"role": "user", "content": "The weather in Rome?"}]
        asked = {"model": MODEL, "max_tokens": 60, "tools": [tool], "tool_choice": {"type": "any"}}
        with client.messages.stream(messages=conversation, **asked) as stream:
            message = stream.get_final_message()
        block = message.content[0]
        assert message.stop_reason == "tool_use" and block.name == "get_weather" and block.input["city"] in ("Paris", "Rome")
        result = {"type": "tool_result", "tool_use_id": block.id, "content": "It rains frogs."}
        conversation += [{"role": "assistant", "content": message.content}, {"role": "user", "content": [result]}]
        assert client.messages.create(model=MODEL, max_tokens=8, messages=conversation, tools=[tool]).usage.output_tokens


def test_errors_of_anthropic_are_those_that_the_sdk_knows(serving: Serving) -> None:
    with anthropic.Anthropic(base_url=serving.url, api_key="none", max_retries=0) as client:
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(model="other", max_tokens=1, messages=MESSAGES)
        assert missing.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model=MODEL, max_tokens=0, messages=MESSAGES)


def test_ollama(serving: Serving) -> None:
    client = ollama.Client(host=serving.url)
    assert [model.model for model in client.list().models] == [MODEL]
    assert client.show(MODEL).modelinfo["llama.context_length"] == 8192
    options = {"temperature": 0, "num_predict": 12}
    messages = [{"role": "system", "content": SYSTEM}, *MESSAGES]
    answer = client.chat(model=MODEL, messages=messages, options=options)
    assert "Paris" in answer.message.content and answer.done and answer.eval_count
    pieces = list(client.chat(model=f"{MODEL}:latest", messages=messages, options=options, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == answer.message.content
    assert client.generate(model=MODEL, system=SYSTEM, prompt=QUESTION, options=options).response == answer.message.content
    assert client.ps().models[0].model == MODEL
    with pytest.raises(ollama.ResponseError) as missing:
        client.chat(model="other", messages=MESSAGES)
    assert missing.value.status_code == 404
