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
from tiny_models import LINEAR_ROPE, LLAMA3_ROPE, YARN_ROPE, TinyModel

FIXTURES = pathlib.Path(__file__).parents[2] / "services/sidecar/crates/engine/tests/fixtures"
GREEDY_TOKENS = 32

SMALL = {"hidden": 32, "intermediate": 64, "head_dim": 16, "vocab": 67}
HUGGING_FACE = [
    TinyModel("tied-f32", seed=21, hidden=32, intermediate=64, head_dim=16, vocab=67),
    TinyModel("untied-llama3-f16", seed=22, hidden=32, intermediate=64, head_dim=16, vocab=67, tied=False, kv_heads=1,
              dtype=torch.float16, rope=LLAMA3_ROPE),
    TinyModel("sharded-bf16", seed=23, hidden=48, intermediate=80, heads=6, kv_heads=3, vocab=67, tied=False, dtype=torch.bfloat16,
              shard_bytes=40_000),
    TinyModel("mistral-bf16", seed=61, family="mistral", tied=False, dtype=torch.bfloat16, **SMALL, options={"sliding_window": 160}),
    TinyModel("llama-biases-linear-f16", seed=62, dtype=torch.float16, rope=LINEAR_ROPE, **SMALL, options={"attention_bias": True}),
    TinyModel("qwen2-yarn-bf16", seed=63, family="qwen2", dtype=torch.bfloat16, rope=YARN_ROPE, **SMALL),
    TinyModel("qwen3-f16", seed=64, family="qwen3", dtype=torch.float16, **SMALL),
    TinyModel("phi3-partial-rope-bf16", seed=65, family="phi3", tied=False, dtype=torch.bfloat16, **SMALL,
              rope={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}),
    TinyModel("gemma-f16", seed=66, family="gemma", kv_heads=1, dtype=torch.float16, **SMALL),
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
    (
        TinyModel("gguf-qwen2-five-bits", seed=67, family="qwen2", vocab=67, rope=YARN_ROPE),
        {"token_embd": Type.Q8_0, "attn_q": Type.Q5_0, "attn_k": Type.Q5_1, "attn_v": Type.Q8_0, "attn_output": Type.Q5_0,
         "ffn_gate": Type.Q5_1, "ffn_up": Type.Q5_0, "ffn_down": Type.Q5_1},
    ),
    # K-quants need rows of 256; what has shorter rows is in other types, as llama.cpp falls back to.
    (
        TinyModel("gguf-qwen3-k-quants", seed=68, family="qwen3", hidden=256, intermediate=32, layers=1, heads=2, kv_heads=1, head_dim=16,
                  vocab=67),
        {"token_embd": Type.Q6_K, "attn_q": Type.Q4_K, "attn_k": Type.Q5_K, "attn_v": Type.Q6_K, "attn_output": Type.Q5_0,
         "ffn_gate": Type.Q4_K, "ffn_up": Type.Q5_K, "ffn_down": Type.Q8_0},
    ),
    (
        TinyModel("gguf-phi3-fused", seed=69, family="phi3", vocab=67, tied=False, hidden=32, intermediate=64, head_dim=16),
        {"token_embd": Type.F16, "output": Type.F16, "attn_qkv": Type.Q8_0, "attn_output": Type.Q4_1, "ffn_up": Type.Q4_0},
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
