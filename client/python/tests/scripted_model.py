"""A model file whose answers are known beforehand, so that tests can have a real program use tools through a real node.

It is a Llama of one layer whose attention and feed-forward add nothing: the next token follows from the last one alone. The chat
template ends the prompt with one of three control tokens, and each of them begins a text that the weights spell out:

* a call of a tool, where tools are offered and no result is there yet;
* an answer, where the conversation holds the text that a tool was to find;
* another answer, where it does not.
"""

from __future__ import annotations

import pathlib
import struct

WIDTH = 256
HEADS = 4
FEED_FORWARD = 32
CONTEXT = 32768
ALIGNMENT = 32
# The logit of the token that follows is this times the norm of a one-hot row (√256); that of all others is 0.
LOGIT = 8.0

BEGIN, END = "<|begin|>", "<|end|>"
CALL, FOUND, LOST = "<|call|>", "<|found|>", "<|lost|>"

# Agents' instructions and tools are long, and this model needs none of them.
TEMPLATE = """\
{%- if tools %}<tool_call>{% endif -%}
{%- set seen = namespace(all='', results=0) -%}
{%- for message in messages if message.role != 'system' and message.content -%}
{{ message.role }}: {{ message.content }}
{% set seen.all = seen.all ~ message.content -%}
{%- if message.role == 'tool' -%}{%- set seen.results = seen.results + 1 -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{%- if tools and not seen.results -%}<|call|>
{%- elif %FACT% in seen.all -%}<|found|>
{%- else -%}<|lost|>
{%- endif -%}
{%- endif -%}"""


def write(path: pathlib.Path, *, name: str, call: str, fact: str, found: str, lost: str) -> None:
    """Writes the file. `call`: JSON of the call; `fact`: the text that the tool is to find; `found`, `lost`: the two answers."""
    words = [*map(_letter, range(256)), BEGIN, END, CALL, FOUND, LOST]
    kinds = [1] * 256 + [3] * 5
    follows: dict[int, int] = {}
    begun = {CALL: f"<tool_call>\n{call}\n</tool_call>", FOUND: found, LOST: lost}
    for mark, text in begun.items():
        last = words.index(mark)
        for chunk in _chunks(text, words):
            words.append(_word(chunk))
            kinds.append(1)
            follows[last] = last = len(words) - 1
        follows[last] = words.index(END)
    assert len(follows) < WIDTH, "the texts are too long"
    states = {token: state for state, token in enumerate(follows)}
    embedding, output = [[0.0] * WIDTH for _ in words], [[0.0] * WIDTH for _ in words]
    # The embedding of a text has a length, whatever its tokens are.
    for token in range(len(words)):
        embedding[token][WIDTH - 1] = 1.0
    for token, following in follows.items():
        embedding[token][WIDTH - 1] = 0.0
        embedding[token][states[token]] = 1.0
        output[following][states[token]] = LOGIT
    ones, side = [1.0] * WIDTH, WIDTH // 2
    zeros = {"attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, side), "attn_v": (WIDTH, side), "attn_output": (WIDTH, WIDTH)}
    zeros |= {"ffn_gate": (WIDTH, FEED_FORWARD), "ffn_up": (WIDTH, FEED_FORWARD), "ffn_down": (FEED_FORWARD, WIDTH)}
    tensors = [("token_embd.weight", (WIDTH, len(words)), sum(embedding, [])), ("output.weight", (WIDTH, len(words)), sum(output, []))]
    tensors += [(norm, (WIDTH,), ones) for norm in ("output_norm.weight", "blk.0.attn_norm.weight", "blk.0.ffn_norm.weight")]
    tensors += [(f"blk.0.{part}.weight", shape, [0.0] * (shape[0] * shape[1])) for part, shape in zeros.items()]
    escaped = fact.replace("\\", "\\\\").replace("'", "\\'")
    metadata: dict[str, object] = {
        "general.architecture": "llama",
        "general.name": name,
        "llama.block_count": 1,
        "llama.context_length": CONTEXT,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": FEED_FORWARD,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": HEADS // 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": words.index(BEGIN),
        "tokenizer.ggml.eos_token_id": words.index(END),
        "tokenizer.chat_template": TEMPLATE.replace("%FACT%", f"'{escaped}'"),
    }
    path.write_bytes(_gguf(metadata, tensors))


def _chunks(text: str, words: list[str]) -> list[str]:
    """The text in pieces that are not among the words, as a tokenizer's words have to differ."""
    chunks: list[str] = []
    begun = ""
    for letter in text:
        begun += letter
        # A single byte is a word already.
        is_new = len(begun) > 3 and begun not in chunks and _word(begun) not in words
        if is_new:
            chunks.append(begun)
            begun = ""
    if begun:
        chunks[-1:] = [chunks[-1] + begun]
    return chunks


def _word(text: str) -> str:
    """A text as byte-level BPE writes it."""
    return "".join(map(_letter, text.encode()))


def _letter(byte: int) -> str:
    """The character that stands for a byte in byte-level BPE (GPT-2's table)."""

    def is_shown(byte: int) -> bool:
        return 0x21 <= byte <= 0x7E or 0xA1 <= byte <= 0xAC or 0xAE <= byte <= 0xFF

    return chr(byte) if is_shown(byte) else chr(256 + sum(not is_shown(before) for before in range(byte)))


def _gguf(metadata: dict[str, object], tensors: list[tuple[str, tuple[int, ...], list[float]]]) -> bytes:
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _text(key) + _value(value)
    offset = 0
    for name, shape, _ in tensors:
        out += _text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", 0, offset)  # F32
        elements = 1
        for length in shape:
            elements *= length
        offset += -(-elements * 4 // ALIGNMENT) * ALIGNMENT
    for _, _, weights in tensors:
        out += bytes(-len(out) % ALIGNMENT) + struct.pack(f"<{len(weights)}f", *weights)
    return bytes(out) + bytes(-len(out) % ALIGNMENT)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: object) -> bytes:
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    assert isinstance(value, list)
    if value and isinstance(value[0], int):
        return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
