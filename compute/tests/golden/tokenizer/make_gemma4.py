"""Writes gemma4.json, a small vocabulary of Gemma 4's form made from the texts of classes.json and corpus.json, and gemma4.ids: the
tokens that the package `tokenizers` gives with it for the texts of classes.json.

python3 -m venv venv && venv/bin/pip install tokenizers==0.23.3 && venv/bin/python make_gemma4.py
"""

import json
import pathlib

from make_words import number
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
FIRST = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]


def tokenizer(model):
    made = Tokenizer(model)
    made.normalizer = normalizers.Replace(" ", "▁")
    return made


def main():
    texts = json.loads((HERE / "classes.json").read_text())
    # Texts without marks, which a vocabulary would not have as ordinary tokens.
    corpus = [text for text in json.loads((HERE / "corpus.json").read_text()) if "<" not in text]
    trained = tokenizer(models.BPE())
    # The family's tokens have line ends only in a row of nothing else.
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("\n+"), "isolated")
    alphabet = trainers.BpeTrainer(vocab_size=900, limit_alphabet=300, show_progress=False)
    trained.train_from_iterator(corpus + texts + ["\n" * len for len in range(2, 8)] * 20, alphabet)
    model = json.loads(trained.to_str())["model"]
    tokens = FIRST + [text for text in sorted(model["vocab"], key=model["vocab"].get)]
    merges = [tuple(merge) for merge in model["merges"]]
    assert not any(" " in token for token in tokens)
    (HERE / "gemma4.json").write_text(
        json.dumps({"tokens": tokens, "merges": [" ".join(merge) for merge in merges]}, ensure_ascii=False, indent=0) + "\n"
    )

    vocabulary = {token: id for id, token in enumerate(tokens)}
    whole = tokenizer(models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made = bytearray()
    for text in texts:
        ids = whole.encode(text).ids
        made += number(len(ids)) + b"".join(map(number, ids))
    (HERE / "gemma4.ids").write_bytes(bytes(made))


if __name__ == "__main__":
    main()
