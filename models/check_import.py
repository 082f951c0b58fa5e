"""Compares an imported model directory with transformers' own reading of the GGUF file: token ids of many texts, rendered chats, stop tokens.

Usage: check_import.py MODEL_DIR [--record FIXTURE.json] [TEXT_FILE ...]

The texts are those below plus every line of the files given. With --record, the answers for the texts below are written as the fixture that
the tests compare with.
"""

import argparse
import json
import pathlib
import sys

from gguf import GGUFReader
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoTokenizer

TEXTS = [
    "Hello, world!",
    "The old mill stands by the river since 1874, doesn't it?",
    "  leading and trailing spaces  ",
    "tabs\tand\nnewlines\r\n\n\nand more",
    "numbers 0 12 345 6789 3.14159 1,000,000 2026-11-21",
    "grüß Gott, naïve café, Ελληνικά, русский, 日本語, 한국어, العربية",
    "emoji 🌊👩‍👩‍👧‍👦🇩🇰 and ∑∫√ symbols",
    "def f(x):\n    return [i ** 2 for i in range(x) if i % 2 == 0]  # comment",
    "<|im_start|>user\nspecial tokens in text<|im_end|>",
    "I'll we've they're it's DON'T CAN'T",
    "a" * 100 + " " * 40 + "!" * 30,
    "\u200bzero width\ufeff and \u00a0no-break",
]
CHATS = [
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Name a river."},
        {"role": "assistant", "content": "The Rhine."},
        {"role": "user", "content": "Another?"},
    ],
]

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("texts", nargs="*", type=pathlib.Path)
parser.add_argument("--record", type=pathlib.Path)
args = parser.parse_args()

theirs = AutoTokenizer.from_pretrained(args.model, gguf_file="model.gguf")
ours = Tokenizer.from_file(str(args.model / "tokenizer.json"))
config = json.loads((args.model / "config.json").read_text())
template = json.loads((args.model / "tokenizer_config.json").read_text())["chat_template"]

texts = list(TEXTS)
for path in args.texts:
    texts += [line for line in path.read_text(errors="replace").splitlines() if line]
wrong = []
for text in texts:
    expected = theirs.encode(text, add_special_tokens=False)
    found = ours.encode(text, add_special_tokens=False).ids
    if expected != found:
        wrong.append((text[:80], expected[:12], found[:12]))
reading = AutoConfig.from_pretrained(args.model, gguf_file="model.gguf")
for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
            "max_position_embeddings", "vocab_size"):
    if getattr(reading, key) != config[key]:
        wrong.append((key, getattr(reading, key), config[key]))
# transformers leaves the template of a GGUF file out; the gguf package reads it.
field = GGUFReader(args.model / "model.gguf").fields["tokenizer.chat_template"]
original = bytes(field.parts[field.data[0]]).decode()
if original != template:
    wrong.append(("chat_template", original[:80], template[:80]))
theirs.chat_template = original
for line in wrong[:10]:
    print("differs:", line)
print(f"{len(texts)} texts and the configuration compared with transformers: {len(wrong)} differ")

if args.record:
    fixture = {
        "texts": [{"text": text, "ids": theirs.encode(text, add_special_tokens=False)} for text in TEXTS],
        "chats": [
            {"messages": chat, "rendered": theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)}
            for chat in CHATS
        ],
    }
    args.record.write_text(json.dumps(fixture, ensure_ascii=True, indent=1) + "\n")
sys.exit(1 if wrong else 0)
