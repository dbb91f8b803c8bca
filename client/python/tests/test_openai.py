"""OpenAI's own SDK, unmodified, against a real node with a real model: a node that any program for OpenAI can use."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from serving import MODEL, node_with

openai = pytest.importorskip("openai", reason="SKIPPED: the openai package is not installed")

QUESTION = [{"role": "user", "content": "Count from one to five."}]


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with node_with() as serving:
        # The first request waits until the model is ready.
        with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none", max_retries=0) as client:
            yield client


def test_a_plain_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=16, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage and answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    # What is ours passes through untouched.
    pangea = answer.model_extra["pangea"]
    assert pangea["verdict"] == "local" and pangea["stages"][0]["layers"] == [0, 30]


def test_a_stream_says_what_the_plain_answer_says(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 16, "temperature": 0}
    whole = client.chat.completions.create(**asked).choices[0].message.content
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices) == whole
    assert pieces[-1].usage and pieces[-1].usage.completion_tokens
    assert pieces[-1].model_extra["pangea"]["verdict"] == "local"


def test_a_stream_that_is_left_is_cancelled(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 8000, "logit_bias": {"2": -100}}
    with client.chat.completions.create(**asked, stream=True) as stream:
        next(iter(stream))
    address = str(client.base_url).removesuffix("/v1/")
    deadline = time.monotonic() + 60
    while True:
        model = client._client.get(f"{address}/api/models").json()["models"][0]
        if model["running"] + model["waiting"] == 0:
            break
        assert time.monotonic() < deadline, model


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=4, temperature=0, logprobs=True, top_logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content
    assert "".join(token.token for token in logprobs.content) == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in logprobs.content)


def test_seeds_choices_and_stops(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 12, "temperature": 1.2, "seed": 5, "n": 2}
    texts = [[c.message.content for c in client.chat.completions.create(**asked).choices] for _ in range(2)]
    assert texts[0] == texts[1] and len(texts[0]) == 2
    stop = texts[0][0][3:6]
    cut = client.chat.completions.create(**{**asked, "n": 1, "stop": [stop]}).choices[0]
    assert stop not in cut.message.content and cut.finish_reason == "stop"


def test_a_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=60, response_format=form, seed=1)
    assert isinstance(json.loads(answer.choices[0].message.content)["ok"], bool)


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def test_a_tool_is_called_plain_and_streamed_and_its_result_is_read(client: openai.OpenAI) -> None:
    asked = {"model": MODEL, "messages": QUESTION, "max_tokens": 60, "temperature": 0, "tools": [WEATHER]}
    choice = client.chat.completions.create(**asked, tool_choice="required").choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    call = choice.message.tool_calls[0]
    assert call.function.name == "get_weather" and json.loads(call.function.arguments)["city"] in ("Paris", "Rome")
    # The SDK puts the pieces together and checks that they fit.
    with client.chat.completions.stream(**asked, tool_choice="required") as stream:
        streamed = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed and streamed[0].function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "It rains frogs."}
    messages = [*QUESTION, choice.message.model_dump(exclude_none=True), result]
    answer = client.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER], max_tokens=8)
    assert answer.usage and answer.usage.completion_tokens


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, echo=True, logprobs=1
    )
    assert answer.choices[0].text.startswith("The capital of France is")
    logprobs = answer.choices[0].logprobs
    assert logprobs and "".join(logprobs.tokens) == answer.choices[0].text
    pieces = client.completions.create(model=MODEL, prompt=[1, 2, 3], max_tokens=4, temperature=0, stream=True)
    assert list(pieces)[-1].choices[0].finish_reason


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_errors_are_those_that_the_sdk_knows(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=QUESTION, n=1000)
    assert wrong.value.param == "n"
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 9000}])
    assert long.value.code == "context_length_exceeded"


def test_the_asynchronous_client(client: openai.OpenAI) -> None:
    import asyncio

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as both:
            asked = [
                both.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=8, seed=seed) for seed in (1, 1, 2)
            ]
            return [answer.choices[0].message.content or "" for answer in await asyncio.gather(*asked)]

    one, again, _ = asyncio.run(ask())
    assert one == again
