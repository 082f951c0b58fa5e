"""What transformers computes: logits of a text, greedy continuations. Everything in f32 on the CPU."""

import contextlib
import io
import pathlib

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel


def load(directory: pathlib.Path, gguf_file: str | None = None) -> PreTrainedModel:
    """A model from a Hugging Face directory, or dequantised from a GGUF file in it."""
    options = {"gguf_file": gguf_file} if gguf_file else {}
    # transformers shows bars of its own while it reads GGUF files.
    with contextlib.redirect_stderr(io.StringIO()):
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager", **options).eval()


def save_dequantised(model: PreTrainedModel, directory: pathlib.Path) -> None:
    """Writes a model that was read from a GGUF file as f32 safetensors, which transformers itself refuses to do."""
    facts = {key: value for key, value in model.config.to_dict().items() if key not in ("quantization_config", "dtype", "architectures")}
    plain = AutoModelForCausalLM.from_config(type(model.config)(**facts))
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(directory)


@torch.inference_mode()
def logits(model: PreTrainedModel, tokens: list[int]) -> np.ndarray:
    """`[tokens, vocab]`."""
    return model(torch.tensor([tokens])).logits[0].numpy()


@torch.inference_mode()
def greedy(model: PreTrainedModel, prompt: list[int], count: int) -> list[int]:
    """The next `count` tokens, through the model's own KV cache; no token ends the text."""
    answer = model(torch.tensor([prompt]), use_cache=True)
    tokens = []
    while True:
        tokens.append(int(answer.logits[0, -1].argmax()))
        if len(tokens) == count:
            return tokens
        answer = model(torch.tensor([tokens[-1:]]), past_key_values=answer.past_key_values, use_cache=True)
