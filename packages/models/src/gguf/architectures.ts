/** What config.json says of the models that a GGUF architecture stands for. */
export interface Architecture {
  readonly modelType: string;
  /** transformers' class. */
  readonly className: string;
  readonly activation: string;
}

/** By `general.architecture`, those that the sidecar runs. llama.cpp's converter calls Mistral models `llama`. */
export const ARCHITECTURES: Readonly<Record<string, Architecture>> = {
  llama: { modelType: "llama", className: "LlamaForCausalLM", activation: "silu" },
  qwen2: { modelType: "qwen2", className: "Qwen2ForCausalLM", activation: "silu" },
  qwen3: { modelType: "qwen3", className: "Qwen3ForCausalLM", activation: "silu" },
  phi3: { modelType: "phi3", className: "Phi3ForCausalLM", activation: "silu" },
  gemma: { modelType: "gemma", className: "GemmaForCausalLM", activation: "gelu_pytorch_tanh" },
};
