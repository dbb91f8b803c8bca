"""Makes expected.json: what jinja2, set up as Hugging Face's apply_chat_template sets it up, makes of the templates here.

harmony, deepseek, glm, gemma4, qwen35 and tekken are not the families' own templates: they are written for these tests, with the marks
and the constructs of those.

python3 -m venv venv && venv/bin/pip install jinja2==3.1.6 && venv/bin/python make.py [directory of other templates]
"""

import datetime
import json
import pathlib
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2024, 7, 26, 12, 0, 0)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place, in °C",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Zürich"]}, "days": {"type": "number", "minimum": 0.5}},
            "required": ["city"],
        },
    },
}
CALL = {"id": "abcdef123", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 1.0}}}


def case(name, messages, add_generation_prompt=True, tools=None, variables=None):
    made = {"name": name, "messages": messages, "add_generation_prompt": add_generation_prompt, "variables": variables or {}}
    return made | ({"tools": tools} if tools else {})


def says(role, content, **extra):
    return {"role": role, "content": content, **extra}


CHAT = [says("user", "Hi"), says("assistant", "Hello, <b>you</b> & 'all' \"here\"."), says("user", "  What is\n\nthe capital of 法国? 🇫🇷 ")]
SYSTEM = [says("system", "You are brief. ")]
CASES = [
    case("one", [says("user", "What is the capital of France?")]),
    case("chat", CHAT),
    case("system", SYSTEM + CHAT),
    case("no_prompt", SYSTEM + CHAT[:2], add_generation_prompt=False),
    case("tools", SYSTEM + CHAT[:1], tools=[WEATHER, WEATHER]),
    case("tool_call", [says("user", "Rain?"), says("assistant", "", tool_calls=[CALL]), says("tool", "{\"mm\": 3}", tool_call_id="abcdef123", name="get_weather"), says("assistant", "Yes."), says("user", "Much?")], tools=[WEATHER]),
    case("two_calls", [says("user", "Rain?"), says("assistant", "So:", tool_calls=[CALL, CALL]), says("tool", "3", tool_call_id="abcdef123"), says("tool", "4", tool_call_id="abcdef123")], tools=[WEATHER]),
    case("thought", [says("user", "1+1?"), says("assistant", "<think>\nEasy.\n</think>\n\n2"), says("user", "2+2?"), says("assistant", "4", reasoning_content="Also easy.")], add_generation_prompt=False),
    case("no_thinking", [says("user", "1+1?")], variables={"enable_thinking": False}),
    case("date", [says("user", "When?")], variables={"date_string": "1 April 2030"}),
    case("two_users", [says("user", "a"), says("user", "b")]),
]


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def environment():
    made = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = NOW.strftime
    return made


def prompt(template, given):
    try:
        text = template.render(
            messages=given["messages"],
            tools=given.get("tools"),
            add_generation_prompt=given["add_generation_prompt"],
            bos_token="<s>",
            eos_token="</s>",
            **given["variables"],
        )
        return {"text": text}
    except (jinja2.exceptions.TemplateError, TypeError) as error:
        return {"error": str(error)}


def with_arguments_as_text(messages):
    def call(one):
        return one | {"function": one["function"] | {"arguments": json.dumps(one["function"]["arguments"], ensure_ascii=False, separators=(",", ":"))}}

    return [one | ({"tool_calls": [call(each) for each in one["tool_calls"]]} if "tool_calls" in one else {}) for one in messages]


def with_thinking(messages):
    return [one | ({"thinking": one["reasoning_content"]} if "reasoning_content" in one else {}) for one in messages]


def with_tool_responses(messages):
    made = []
    for one in messages:
        if one["role"] != "tool":
            made.append(dict(one))
            continue
        response = json.loads(one["content"])
        response = {"name": CALL["function"]["name"], "response": response if isinstance(response, dict) else one["content"]}
        made[-1].setdefault("tool_responses", []).append(response)
    return made


# What the templates of these families expect beyond OpenAI's form.
FORMS = {"deepseek": with_arguments_as_text, "harmony": with_thinking, "gemma4": with_tool_responses}


def main():
    directory = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    prompts = {}
    for path in sorted(directory.glob("*.jinja")):
        try:
            template = environment().from_string(path.read_text())
        except jinja2.exceptions.TemplateSyntaxError as error:
            print(f"{path.name}: {error}", file=sys.stderr)
            continue
        form = FORMS.get(path.stem, list)
        prompts[path.stem] = {given["name"]: prompt(template, given | {"messages": form(given["messages"])}) for given in CASES}
    (directory / "expected.json").write_text(json.dumps({"cases": CASES, "prompts": prompts}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
