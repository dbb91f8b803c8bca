"""Writes a model of a real size with random weights, to measure speed and memory with; it says nothing sensible.

    pip install gguf
    python tests/benches/random_gguf.py llama-1b Q4_K OUT.gguf --tokenizer MODEL.gguf

The tokenizer is another file's. With Q4_K and Q5_K, the embedding and the head are Q6_K, as in published files. Needs as much memory as
the file has bytes.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type


@dataclass(frozen=True)
class Shape:
    architecture: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int
    experts: int = 0
    used_experts: int = 0


SHAPES = {
    "llama-1b": Shape("llama", 2048, 16, 32, 8, 64, 8192),
    "llama-3b": Shape("llama", 3072, 28, 24, 8, 128, 8192),
    "llama-7b": Shape("llama", 4096, 32, 32, 8, 128, 14336),
    "qwen3moe-5b": Shape("qwen3moe", 2048, 8, 32, 4, 128, 768, 128, 8),
}
# Rows that differ; further ones repeat them.
ROWS = 4096
# Bytes of f16 scales in a block, those of minima, and integer scales, with the bits of them that are kept.
SCALES: dict[Type, tuple[list[int], list[int], tuple[slice, int] | None]] = {
    Type.Q4_0: ([0], [], None),
    Type.Q5_0: ([0], [], None),
    Type.Q8_0: ([0], [], None),
    Type.Q4_1: ([0], [2], None),
    Type.Q5_1: ([0], [2], None),
    Type.Q4_K: ([0], [2], (slice(4, 16), 0x3F)),
    Type.Q5_K: ([0], [2], (slice(4, 16), 0x3F)),
    Type.Q6_K: ([208], [], (slice(192, 208), 0x1F)),
}


class Model:
    """One file that is written."""

    def __init__(self, path: str, shape: Shape) -> None:
        self.writer = gguf.GGUFWriter(path, shape.architecture)
        self.random = np.random.default_rng(1)

    def tokenizer_of(self, path: str) -> int:
        """Copies the tokenizer; returns the size of its vocabulary."""
        reader = gguf.GGUFReader(path)
        for field in reader.fields.values():
            if field.name.startswith("tokenizer."):
                is_array = field.types[0] == gguf.GGUFValueType.ARRAY
                self.writer.add_key_value(
                    field.name, field.contents(), field.types[0], field.types[-1] if is_array else None
                )
        return len(reader.fields["tokenizer.ggml.tokens"].data)

    def ones(self, name: str, elements: int) -> None:
        self.writer.add_tensor(f"{name}.weight", np.ones(elements, np.float32))

    def floats(self, name: str, *shape: int) -> None:
        self.writer.add_tensor(f"{name}.weight", (self.random.standard_normal(shape) * 0.02).astype(np.float32))

    def blocks(self, name: str, type_: Type, *shape: int) -> None:
        """A tensor whose codes are random and whose scales keep activations in bounds."""
        block_elements, block_bytes = gguf.GGML_QUANT_SIZES[type_]
        *outer, k = shape
        rows = math.prod(outer)
        blocks = self.random.integers(0, 256, (min(rows, ROWS), k // block_elements, block_bytes), np.uint8)
        scales, minima, integers = SCALES[type_]
        for places, value in ((scales, 0.16 / math.sqrt(k)), (minima, 0.001)):
            for at in places:
                blocks[..., at : at + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        if integers is not None:
            blocks[..., integers[0]] &= integers[1]
        repeated = np.tile(blocks, (-(-rows // len(blocks)), 1, 1))[:rows]
        self.writer.add_tensor(f"{name}.weight", repeated.reshape(*outer, -1), raw_dtype=type_)


def write(path: str, shape: Shape, type_: Type, tokenizer: str) -> None:
    model = Model(path, shape)
    writer = model.writer
    vocabulary = model.tokenizer_of(tokenizer)
    hidden, ff = shape.hidden, shape.feed_forward
    writer.add_block_count(shape.layers)
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ff)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_dimension_count(shape.head)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    if shape.experts:
        writer.add_expert_count(shape.experts)
        writer.add_expert_used_count(shape.used_experts)
        writer.add_expert_feed_forward_length(ff)
    outer = Type.Q6_K if type_ in (Type.Q4_K, Type.Q5_K) else type_
    model.blocks("token_embd", outer, vocabulary, hidden)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        model.ones(block + "attn_norm", hidden)
        model.blocks(block + "attn_q", type_, shape.heads * shape.head, hidden)
        model.blocks(block + "attn_k", type_, shape.kv_heads * shape.head, hidden)
        model.blocks(block + "attn_v", type_, shape.kv_heads * shape.head, hidden)
        model.blocks(block + "attn_output", type_, hidden, shape.heads * shape.head)
        if shape.architecture == "qwen3moe":
            model.ones(block + "attn_q_norm", shape.head)
            model.ones(block + "attn_k_norm", shape.head)
        model.ones(block + "ffn_norm", hidden)
        each = (shape.experts,) if shape.experts else ()
        suffix = "_exps" if shape.experts else ""
        if shape.experts:
            model.floats(block + "ffn_gate_inp", shape.experts, hidden)
        model.blocks(block + "ffn_gate" + suffix, type_, *each, ff, hidden)
        model.blocks(block + "ffn_up" + suffix, type_, *each, ff, hidden)
        model.blocks(block + "ffn_down" + suffix, type_, *each, hidden, ff)
    model.ones("output_norm", hidden)
    model.blocks("output", outer, vocabulary, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a model of a real size with random weights.")
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("type", choices=[type_.name for type_ in SCALES])
    parser.add_argument("out")
    parser.add_argument("--tokenizer", required=True, help="a GGUF file whose tokenizer is used")
    args = parser.parse_args()
    write(args.out, SHAPES[args.shape], Type[args.type], args.tokenizer)


if __name__ == "__main__":
    main()
