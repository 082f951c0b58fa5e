"""Records what transformers computes for a few very small models, for tests that run without Python.

Usage: record.py [DIRECTORY]   (default: the engine's test fixtures)

Each fixture is a folder with the model, `expected.json` (prompts and the greedy tokens after each) and `logits.f32` (logits after every token
of the last prompt, little endian, `[tokens, vocab]`). The same versions of the packages give the same bytes.
"""

import json
import pathlib
import shutil
import sys

import numpy as np
import torch
from transformers.utils import logging
from gguf import GGMLQuantizationType as Type

import reference
import tiny_gguf
from record_blocks import record_blocks
from tiny_models import LLAMA3_ROPE, TinyModel

FIXTURES = pathlib.Path(__file__).parents[2] / "services/sidecar/crates/engine/tests/fixtures"
GREEDY_TOKENS = 32

HUGGING_FACE = [
    TinyModel("tied-f32", seed=21, hidden=32, intermediate=64, head_dim=16, vocab=67),
    TinyModel("untied-llama3-f16", seed=22, hidden=32, intermediate=64, head_dim=16, vocab=67, tied=False, kv_heads=1,
              dtype=torch.float16, rope=LLAMA3_ROPE),
    TinyModel("sharded-bf16", seed=23, hidden=48, intermediate=80, heads=6, kv_heads=3, vocab=67, tied=False, dtype=torch.bfloat16,
              shard_bytes=40_000),
]
GGUF = [
    (
        TinyModel("gguf-quantised", seed=24, vocab=67, tied=True),
        {"token_embd": Type.Q8_0, "attn_q": Type.Q4_0, "attn_k": Type.Q4_1, "attn_v": Type.Q8_0, "attn_output": Type.Q4_1,
         "ffn_gate": Type.Q4_0, "ffn_up": Type.Q8_0, "ffn_down": Type.Q4_1},
    ),
    (
        TinyModel("gguf-llama3-mixed", seed=25, vocab=67, tied=False, rope=LLAMA3_ROPE),
        {"token_embd": Type.F16, "output": Type.Q4_0, "attn_q": Type.Q8_0, "attn_k": Type.BF16, "attn_v": Type.F16,
         "attn_output": Type.BF16, "ffn_gate": Type.Q4_1, "ffn_up": Type.Q4_0},
    ),
]


def prompts(spec: TinyModel) -> list[list[int]]:
    draw = np.random.default_rng(spec.seed)
    return [draw.integers(0, spec.vocab, length).tolist() for length in (1, 7, 33, 96)]


def record(directory: pathlib.Path, spec: TinyModel, model) -> None:
    texts = prompts(spec)
    greedy = [reference.greedy(model, prompt, GREEDY_TOKENS) for prompt in texts]
    expected = {"prompts": texts, "greedy": greedy}
    (directory / "expected.json").write_text(json.dumps(expected) + "\n")
    (directory / "logits.f32").write_bytes(reference.logits(model, texts[-1]).astype("<f4").tobytes())
    size = sum(path.stat().st_size for path in directory.iterdir())
    print(f"{spec.name}: {size} bytes")


def fresh(root: pathlib.Path, name: str) -> pathlib.Path:
    directory = root / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


def main() -> None:
    logging.disable_progress_bar()
    record_blocks()
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FIXTURES
    for spec in HUGGING_FACE:
        directory = fresh(root, spec.name)
        spec.save(directory)
        record(directory, spec, reference.load(directory))
    for spec, types in GGUF:
        directory = fresh(root, spec.name)
        model = spec.make()
        tiny_gguf.write(model, directory / "model.gguf", types)
        tiny_gguf.dequantised(model, types)
        record(directory, spec, model)


main()
