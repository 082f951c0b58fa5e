"""Small random-weight models of every family that between them use every option that the engine supports.

Each is made by transformers itself from a fixed seed, rounded to the type that it is stored in, and read back, so that the reference computes
in f32 on exactly the weights that the engine is given.
"""

import dataclasses
import pathlib

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64}


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """What to make. `head_dim` 0 means hidden / heads; `shard_bytes` 0 means one file; `options` are keys of the family's configuration."""

    name: str
    seed: int
    family: str = "llama"
    hidden: int = 64
    intermediate: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 0
    vocab: int = 131
    tied: bool = True
    dtype: torch.dtype = torch.float32
    rope: dict | None = None
    shard_bytes: int = 0
    options: dict = dataclasses.field(default_factory=dict)

    def config(self) -> PreTrainedConfig:
        rope = {} if self.rope is None else {"rope_parameters": dict(self.rope)}
        return AutoConfig.for_model(
            self.family,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim or self.hidden // self.heads,
            vocab_size=self.vocab,
            max_position_embeddings=1024,
            rms_norm_eps=1e-5,
            tie_word_embeddings=self.tied,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=None,
            **rope,
            **self.options,
        )

    def make(self) -> PreTrainedModel:
        """Random weights of unit gain, in f32: logits differ by some units, as a trained model's do, so that comparing them says something."""
        model = AutoModelForCausalLM.from_config(self.config(), attn_implementation="eager", dtype=torch.float32).eval()
        draw = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                noise = torch.randn(weight.shape, generator=draw)
                if name.endswith(".bias"):
                    weight.copy_(0.3 * noise)
                elif weight.dim() == 1:
                    # Gemma's norms multiply with 1 + weight.
                    weight.copy_(0.2 * noise + (0.0 if self.family == "gemma" else 1.0))
                else:
                    weight.copy_(noise * (2.0 if "embed" in name else 1.3) / weight.shape[1] ** 0.5)
        return model

    def save(self, directory: pathlib.Path) -> None:
        """Writes config.json and safetensors as transformers does."""
        shards = {"max_shard_size": self.shard_bytes} if self.shard_bytes else {}
        self.make().to(self.dtype).save_pretrained(directory, **shards)


# For the comparison; the fixtures that the engine's tests use are smaller and in record.py.
COMPARED = [
    TinyModel("grouped heads, tied, f32", seed=11),
    TinyModel("own head size, untied, f32", seed=12, head_dim=32, tied=False, layers=3),
    TinyModel("one KV head each, llama3 RoPE, untied, f16", seed=13, kv_heads=4, tied=False, dtype=torch.float16, rope=LLAMA3_ROPE),
    TinyModel("shards, bf16", seed=14, heads=6, hidden=96, kv_heads=2, vocab=200, dtype=torch.bfloat16, shard_bytes=60_000),
    TinyModel("one KV head for all, RoPE base 500000, f16", seed=15, kv_heads=1, dtype=torch.float16,
              rope={"rope_type": "default", "rope_theta": 500_000.0}),
    TinyModel("attention biases, linear RoPE, f32", seed=16, rope=LINEAR_ROPE, options={"attention_bias": True}),
    TinyModel("Mistral without a window, untied, bf16", seed=17, family="mistral", tied=False, head_dim=32, dtype=torch.bfloat16,
              options={"sliding_window": None}),
    TinyModel("Mistral within its window of 512, f16", seed=18, family="mistral", dtype=torch.float16, options={"sliding_window": 512}),
    TinyModel("Qwen2, untied, bf16", seed=19, family="qwen2", tied=False, dtype=torch.bfloat16,
              rope={"rope_type": "default", "rope_theta": 1_000_000.0}),
    TinyModel("Qwen2, tied, YaRN, f32", seed=20, family="qwen2", rope=YARN_ROPE),
    TinyModel("Qwen3, head size 32, tied, bf16", seed=51, family="qwen3", head_dim=32, dtype=torch.bfloat16,
              rope={"rope_type": "default", "rope_theta": 1_000_000.0}),
    TinyModel("Qwen3, YaRN with its own factor, attention biases, f32", seed=52, family="qwen3", tied=False,
              rope=YARN_ROPE | {"attention_factor": 1.3, "beta_fast": 16.0, "beta_slow": 2.0}, options={"attention_bias": True}),
    TinyModel("Phi-3, untied, f16", seed=53, family="phi3", tied=False, kv_heads=4, dtype=torch.float16),
    TinyModel("Phi-3, half of each head rotated, shards, bf16", seed=54, family="phi3", head_dim=32, dtype=torch.bfloat16, shard_bytes=60_000,
              rope={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}),
    TinyModel("Gemma, one KV head for all, bf16", seed=55, family="gemma", head_dim=32, kv_heads=1, dtype=torch.bfloat16),
]
