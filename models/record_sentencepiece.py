"""Trains a small SentencePiece BPE model with byte fallback, as Llama 2's is, and records its vocabulary and how it encodes and decodes texts.

Usage: record_sentencepiece.py FIXTURE.json   (needs sentencepiece==0.2.3)

The test of the GGUF import compares the tokenizer.json that it writes for this vocabulary with these answers.
"""

import io
import json
import pathlib
import sys

import sentencepiece

TEXT = pathlib.Path(__file__).parent / "oracle/text.txt"
TEXTS = [
    "Hello, world!",
    "The old mill stands by the river since 1874, doesn't it?",
    "  leading and trailing spaces  ",
    "tabs\tand\nnewlines\n\n\nand more",
    "numbers 0 12 345 6789 3.14159 1,000,000",
    "grüß Gott, naïve café, русский, 日本語 🌊",
    "a" * 40 + " " * 9 + "!" * 11,
    "x",
    " ",
]
# GGUF token types by SentencePiece's own predicates.
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def train() -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.read_text().splitlines()),
        model_writer=model,
        model_type="bpe",
        vocab_size=560,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        num_threads=1,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def type_of(model: sentencepiece.SentencePieceProcessor, token: int) -> int:
    if model.is_unknown(token):
        return UNKNOWN
    if model.is_control(token):
        return CONTROL
    return BYTE if model.is_byte(token) else NORMAL


def main() -> None:
    model = train()
    tokens = range(model.vocab_size())
    encoded = [{"text": text, "ids": model.encode(text)} for text in TEXTS]
    fixture = {
        "tokens": [model.id_to_piece(token) for token in tokens],
        "scores": [model.get_score(token) for token in tokens],
        "types": [type_of(model, token) for token in tokens],
        "bos": model.bos_id(),
        "eos": model.eos_id(),
        "texts": [one | {"decoded": model.decode(one["ids"])} for one in encoded],
    }
    pathlib.Path(sys.argv[1]).write_text(json.dumps(fixture, ensure_ascii=True) + "\n")


main()
