//! Small model files for tests: writers of both formats and a random-weight model.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// A tensor to write.
#[derive(Debug, Clone)]
pub struct TestTensor {
    /// Name in the file.
    pub name: String,
    /// `F32`, `F16`, `BF16` for safetensors.
    pub dtype: &'static str,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Data.
    pub bytes: Vec<u8>,
}

/// Shape of a test model.
#[derive(Debug, Clone)]
pub struct TestModel {
    /// Residual width.
    pub hidden: usize,
    /// MLP width.
    pub intermediate: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Head size.
    pub head_size: usize,
    /// Vocabulary.
    pub vocab: usize,
    /// Tied head.
    pub tied: bool,
    /// Draws the weights.
    pub seed: u64,
}

impl Default for TestModel {
    fn default() -> Self {
        Self {
            hidden: 64,
            intermediate: 96,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_size: 16,
            vocab: 128,
            tied: true,
            seed: 1,
        }
    }
}

impl TestModel {
    /// config.json.
    pub fn config_json(&self) -> String {
        format!(
            r#"{{"model_type":"llama","hidden_size":{},"intermediate_size":{},"num_hidden_layers":{},"num_attention_heads":{},"num_key_value_heads":{},"head_dim":{},"vocab_size":{},"max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":{},"eos_token_id":2,"hidden_act":"silu"}}"#,
            self.hidden,
            self.intermediate,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_size,
            self.vocab,
            self.tied
        )
    }

    /// Every tensor, random in f32.
    pub fn tensors(&self) -> Vec<TestTensor> {
        let mut random = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
        let mut tensors = Vec::new();
        let (q, kv) = (self.heads * self.head_size, self.kv_heads * self.head_size);
        let mut add = |name: String, shape: Vec<usize>| {
            let count: usize = shape.iter().product();
            let norm = shape.len() == 1;
            let scale = if norm { 0.1 } else { (3.0 / shape[1] as f32).sqrt() };
            let bytes = (0..count)
                .flat_map(|_| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let unit = (random >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                    (unit * scale + if norm { 1.0 } else { 0.0 }).to_le_bytes()
                })
                .collect();
            tensors.push(TestTensor {
                name,
                dtype: "F32",
                shape,
                bytes,
            });
        };
        add("model.embed_tokens.weight".into(), vec![self.vocab, self.hidden]);
        for layer in 0..self.layers {
            for (part, shape) in [
                ("input_layernorm", vec![self.hidden]),
                ("self_attn.q_proj", vec![q, self.hidden]),
                ("self_attn.k_proj", vec![kv, self.hidden]),
                ("self_attn.v_proj", vec![kv, self.hidden]),
                ("self_attn.o_proj", vec![self.hidden, q]),
                ("post_attention_layernorm", vec![self.hidden]),
                ("mlp.gate_proj", vec![self.intermediate, self.hidden]),
                ("mlp.up_proj", vec![self.intermediate, self.hidden]),
                ("mlp.down_proj", vec![self.hidden, self.intermediate]),
            ] {
                add(format!("model.layers.{layer}.{part}.weight"), shape);
            }
        }
        add("model.norm.weight".into(), vec![self.hidden]);
        if !self.tied {
            add("lm_head.weight".into(), vec![self.vocab, self.hidden]);
        }
        tensors
    }

    /// A Hugging Face directory.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write_hugging_face(&self, directory: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join("config.json"), self.config_json())?;
        std::fs::write(directory.join("model.safetensors"), safetensors_bytes(&self.tensors()))
    }

    /// The same model as the bytes of a GGUF file, f32, with llama.cpp's names and row order.
    pub fn gguf_bytes(&self) -> Vec<u8> {
        let mut pairs: Vec<(String, GgufTestValue)> =
            vec![("general.architecture".into(), GgufTestValue::Text("llama".into()))];
        for (key, value) in [
            ("embedding_length", self.hidden),
            ("feed_forward_length", self.intermediate),
            ("block_count", self.layers),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_size),
            ("attention.value_length", self.head_size),
            ("context_length", 2048),
            ("rope.dimension_count", self.head_size),
        ] {
            pairs.push((format!("llama.{key}"), GgufTestValue::U32(value as u32)));
        }
        pairs.push(("llama.rope.freq_base".into(), GgufTestValue::F32(10_000.0)));
        pairs.push((
            "llama.attention.layer_norm_rms_epsilon".into(),
            GgufTestValue::F32(1e-5),
        ));
        pairs.push(("tokenizer.ggml.eos_token_id".into(), GgufTestValue::U32(2)));
        let tensors: Vec<(String, u32, Vec<usize>, Vec<u8>)> = self
            .tensors()
            .into_iter()
            .map(|tensor| {
                let heads = if tensor.name.contains("q_proj") {
                    Some(self.heads)
                } else if tensor.name.contains("k_proj") {
                    Some(self.kv_heads)
                } else {
                    None
                };
                let bytes = match heads {
                    Some(heads) => interleave_rows(&tensor.bytes, tensor.shape[0], heads),
                    None => tensor.bytes,
                };
                (gguf_name(&tensor.name), 0, tensor.shape, bytes)
            })
            .collect();
        gguf_bytes(&pairs, &tensors)
    }
}

/// A metadata value to write.
#[derive(Debug, Clone)]
pub enum GgufTestValue {
    /// Type 4.
    U32(u32),
    /// Type 6.
    F32(f32),
    /// Type 8.
    Text(String),
}

fn gguf_name(name: &str) -> String {
    let plain = name.trim_end_matches(".weight");
    let mapped = match plain {
        "model.embed_tokens" => "token_embd".to_owned(),
        "model.norm" => "output_norm".to_owned(),
        "lm_head" => "output".to_owned(),
        _ => {
            let mut parts = plain.trim_start_matches("model.layers.").splitn(2, '.');
            let layer = parts.next().unwrap_or_default();
            let part = match parts.next().unwrap_or_default() {
                "input_layernorm" => "attn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "post_attention_layernorm" => "ffn_norm",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                _ => "ffn_down",
            };
            format!("blk.{layer}.{part}")
        }
    };
    format!("{mapped}.weight")
}

/// What llama.cpp's converter does to query and key rows.
fn interleave_rows(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows;
    let size = rows / heads;
    let mut out = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, within) = (row / size, row % size);
        let original = head * size + (within % 2) * (size / 2) + within / 2;
        out.extend_from_slice(&bytes[original * row_bytes..(original + 1) * row_bytes]);
    }
    out
}

/// The bytes of a safetensors file.
pub fn safetensors_bytes(tensors: &[TestTensor]) -> Vec<u8> {
    let mut header = BTreeMap::new();
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.bytes.len();
        header.insert(
            tensor.name.clone(),
            serde_json::json!({"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let header = serde_json::to_vec(&header).unwrap_or_default();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    for tensor in tensors {
        out.extend(&tensor.bytes);
    }
    out
}

/// The bytes of a GGUF file; tensors as (name, GGML type, shape outermost first, data).
pub fn gguf_bytes(pairs: &[(String, GgufTestValue)], tensors: &[(String, u32, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(b"GGUF");
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((pairs.len() as u64).to_le_bytes());
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    };
    for (key, value) in pairs {
        text(&mut out, key);
        match value {
            GgufTestValue::U32(number) => {
                out.extend(4u32.to_le_bytes());
                out.extend(number.to_le_bytes());
            }
            GgufTestValue::F32(number) => {
                out.extend(6u32.to_le_bytes());
                out.extend(number.to_le_bytes());
            }
            GgufTestValue::Text(value) => {
                out.extend(8u32.to_le_bytes());
                text(&mut out, value);
            }
        }
    }
    let mut offset = 0usize;
    for (name, kind, shape, bytes) in tensors {
        text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        for dim in shape.iter().rev() {
            out.extend((*dim as u64).to_le_bytes());
        }
        out.extend(kind.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset = (offset + bytes.len()).next_multiple_of(32);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    for (_, _, _, bytes) in tensors {
        let _ = out.write_all(bytes);
        out.resize(out.len().next_multiple_of(32), 0);
    }
    out
}
