"""Records what transformers' logits processors make of random logits, for a test that runs without Python.

Usage: record_sampling.py [FILE.json]   (default: the engine's sampling tests)
"""

import json
import pathlib
import sys

import numpy as np
import torch
from transformers.generation import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

FILE = pathlib.Path(__file__).parents[2] / "services/sidecar/crates/engine/src/sampling/fixtures/transformers.json"
VOCAB = 40

DEFAULTS = {
    "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0, "min_tokens": 0,
    "stop_token_ids": [], "bad_words": [], "logit_bias": [],
}

CASES = [
    ("temperature", {"temperature": 0.6}),
    ("top_k", {"top_k": 7}),
    ("top_p", {"top_p": 0.8}),
    ("min_p", {"min_p": 0.2}),
    ("min_p when hot", {"min_p": 0.3, "temperature": 1.7}),
    ("typical_p", {"typical_p": 0.7}),
    ("typical_p, little", {"typical_p": 0.2, "temperature": 1.3}),
    ("repetition_penalty", {"repetition_penalty": 1.4}),
    ("repetition_penalty that rewards", {"repetition_penalty": 0.8}),
    ("min_tokens", {"min_tokens": 5, "stop_token_ids": [3, 11]}),
    ("min_tokens, passed", {"min_tokens": 3, "stop_token_ids": [3, 11]}),
    ("bad_words", {"bad_words": [[4], [9, 2, 17], [9, 2], [30, 31]]}),
    ("logit_bias", {"logit_bias": [[5, 3.5], [6, -2.25], [7, -100.0]]}),
    ("all truncations", {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "typical_p": 0.9}),
    (
        "everything",
        {"temperature": 0.8, "top_k": 25, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.95, "repetition_penalty": 1.2, "min_tokens": 9,
         "stop_token_ids": [0, 1], "bad_words": [[9, 2], [33]], "logit_bias": [[12, 1.5]]},
    ),
]


def processed(case: dict, prompt: list[int], output: list[int], logits: np.ndarray) -> list[float]:
    chain = LogitsProcessorList()
    if case["logit_bias"]:
        chain.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in case["logit_bias"]]))
    if case["repetition_penalty"] != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    if case["bad_words"]:
        chain.append(NoBadWordsLogitsProcessor(case["bad_words"], eos_token_id=None))
    if case["min_tokens"]:
        chain.append(MinNewTokensLengthLogitsProcessor(len(prompt), case["min_tokens"], case["stop_token_ids"], device="cpu"))
    if case["temperature"] != 1.0:
        chain.append(TemperatureLogitsWarper(case["temperature"]))
    if case["top_k"]:
        chain.append(TopKLogitsWarper(case["top_k"]))
    if case["top_p"] < 1.0:
        chain.append(TopPLogitsWarper(case["top_p"]))
    if case["min_p"]:
        chain.append(MinPLogitsWarper(case["min_p"]))
    if case["typical_p"] < 1.0:
        chain.append(TypicalLogitsWarper(case["typical_p"]))
    scores = chain(torch.tensor([prompt + output]), torch.tensor(logits)[None])
    return torch.softmax(scores.double(), dim=-1)[0].tolist()


def main() -> None:
    draw = np.random.default_rng(7)
    recorded = []
    for repeat in range(3):
        for name, changes in CASES:
            case = DEFAULTS | changes
            prompt = draw.integers(0, VOCAB, 6).tolist()
            output = draw.integers(0, VOCAB, 2).tolist() + [9, 2]
            logits = (draw.standard_normal(VOCAB) * 2.5).astype(np.float32)
            recorded.append({
                "name": f"{name} ({repeat})", "prompt": prompt, "output": output,
                "logits": [round(float(value), 4) for value in logits], **case,
            })
            exact = np.array(recorded[-1]["logits"], dtype=np.float32)
            recorded[-1]["probabilities"] = [round(p, 9) if p else 0 for p in processed(case, prompt, output, exact)]
    path = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    path.write_text("[\n" + ",\n".join(json.dumps(entry) for entry in recorded) + "\n]\n")
    print(f"{len(recorded)} cases")


main()
