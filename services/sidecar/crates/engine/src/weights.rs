//! The packed weights of a model.

use crate::bench::WeightMacs;
use crate::error::EngineError;
use kvasir_kernels::PackedMatrix;
use kvasir_model::ModelConfig;

/// All weights. Matrices are `[out, in]`.
pub struct Weights {
    /// `[vocab, hidden]`.
    pub embedding: PackedMatrix,
    /// `[hidden]`.
    pub output_norm: Vec<f32>,
    /// `[vocab, hidden]`; absent when the embedding is the head too.
    pub output: Option<PackedMatrix>,
    /// In order.
    pub layers: Vec<LayerWeights>,
}

/// Weights of one layer.
pub struct LayerWeights {
    /// `[hidden]`.
    pub attention_norm: Vec<f32>,
    /// `[heads · head_size, hidden]`.
    pub query: PackedMatrix,
    /// `[kv_heads · head_size, hidden]`.
    pub key: PackedMatrix,
    /// `[kv_heads · head_size, hidden]`.
    pub value: PackedMatrix,
    /// `[hidden, heads · head_size]`.
    pub attention_output: PackedMatrix,
    /// `[hidden]`.
    pub mlp_norm: Vec<f32>,
    /// `[intermediate, hidden]`.
    pub gate: PackedMatrix,
    /// `[intermediate, hidden]`.
    pub up: PackedMatrix,
    /// `[hidden, intermediate]`.
    pub down: PackedMatrix,
    /// What some families add.
    pub extras: LayerExtras,
}

/// Vectors of one layer that the model's options ask for, and no others.
#[derive(Default)]
pub struct LayerExtras {
    /// `[heads · head_size]`, `[kv_heads · head_size]` twice.
    pub qkv_bias: Option<[Vec<f32>; 3]>,
    /// `[hidden]`.
    pub attention_output_bias: Option<Vec<f32>>,
    /// Of queries and keys, `[head_size]` each.
    pub head_norms: Option<[Vec<f32>; 2]>,
}

impl Weights {
    /// Checks every shape against the model's configuration.
    ///
    /// # Errors
    /// [`EngineError::Shape`] naming the weight.
    pub fn check(&self, config: &ModelConfig) -> Result<(), EngineError> {
        let (hidden, queries) = (config.hidden_size, config.head_count * config.head_size);
        let (kv, mlp) = (config.kv_head_count * config.head_size, config.intermediate_size);
        if config.kv_head_count == 0 || !config.head_count.is_multiple_of(config.kv_head_count) {
            let (heads, kv_heads) = (config.head_count, config.kv_head_count);
            return Err(EngineError::Configuration(format!(
                "{heads} query heads do not divide among {kv_heads} KV heads"
            )));
        }
        matrix("embedding", &self.embedding, config.vocab_size, hidden)?;
        vector("output norm", &self.output_norm, hidden)?;
        if let Some(output) = &self.output {
            matrix("output", output, config.vocab_size, hidden)?;
        }
        if self.layers.len() != config.layer_count {
            let (found, expected) = (self.layers.len(), config.layer_count);
            return Err(EngineError::Configuration(format!(
                "{found} layers of weights, {expected} expected"
            )));
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let name = |part: &str| format!("layer {index} {part}");
            vector(&name("attention norm"), &layer.attention_norm, hidden)?;
            matrix(&name("query"), &layer.query, queries, hidden)?;
            matrix(&name("key"), &layer.key, kv, hidden)?;
            matrix(&name("value"), &layer.value, kv, hidden)?;
            matrix(&name("attention output"), &layer.attention_output, hidden, queries)?;
            vector(&name("mlp norm"), &layer.mlp_norm, hidden)?;
            matrix(&name("gate"), &layer.gate, mlp, hidden)?;
            matrix(&name("up"), &layer.up, mlp, hidden)?;
            matrix(&name("down"), &layer.down, hidden, mlp)?;
            layer.extras.check(index, config)?;
        }
        Ok(())
    }

    /// The language-model head.
    pub fn head(&self) -> &PackedMatrix {
        self.output.as_ref().unwrap_or(&self.embedding)
    }

    /// Bytes that a decode step reads whatever its batch: every matrix once (an untied embedding is only looked up in).
    pub fn bytes_per_step(&self) -> usize {
        let layers = self.layers.iter().flat_map(LayerWeights::matrices);
        layers.chain([self.head()]).map(PackedMatrix::byte_len).sum()
    }

    /// Multiply-adds of one row: with the layers, with the head.
    pub fn macs(&self) -> (WeightMacs, WeightMacs) {
        let layers = self.layers.iter().flat_map(LayerWeights::matrices);
        (macs(layers), macs([self.head()]))
    }
}

fn macs<'a>(matrices: impl IntoIterator<Item = &'a PackedMatrix>) -> WeightMacs {
    let mut macs = WeightMacs::default();
    for matrix in matrices {
        let count = matrix.rows() * matrix.cols();
        if matrix.weight_type().is_quantised() {
            macs.quantised += count;
        } else if matrix.weight_type().is_bf16_pairs() {
            macs.pairs += count;
        } else {
            macs.dense += count;
        }
    }
    macs
}

impl LayerWeights {
    fn matrices(&self) -> [&PackedMatrix; 7] {
        [
            &self.query,
            &self.key,
            &self.value,
            &self.attention_output,
            &self.gate,
            &self.up,
            &self.down,
        ]
    }
}

impl LayerExtras {
    fn check(&self, index: usize, config: &ModelConfig) -> Result<(), EngineError> {
        let (options, kv) = (&config.options, config.kv_head_count * config.head_size);
        let qkv = [config.head_count * config.head_size, kv, kv];
        vectors(
            index,
            "query, key, value bias",
            options.qkv_bias,
            self.qkv_bias.as_ref().map(|v| v.as_slice()),
            &qkv,
        )?;
        let bias = self.attention_output_bias.as_ref().map(std::slice::from_ref);
        let output = options.attention_output_bias;
        vectors(index, "attention output bias", output, bias, &[config.hidden_size])?;
        let norms = self.head_norms.as_ref().map(|v| v.as_slice());
        vectors(
            index,
            "query, key norm",
            options.head_norms,
            norms,
            &[config.head_size; 2],
        )
    }
}

/// Vectors that are there exactly when they should be, with their sizes.
fn vectors(
    index: usize,
    name: &str,
    expected: bool,
    found: Option<&[Vec<f32>]>,
    sizes: &[usize],
) -> Result<(), EngineError> {
    if found.is_some() != expected {
        let state = if expected {
            "missing"
        } else {
            "not in the configuration"
        };
        return Err(EngineError::Configuration(format!("layer {index} {name} is {state}")));
    }
    let mut pairs = found.into_iter().flatten().zip(sizes);
    pairs.try_for_each(|(found, size)| vector(&format!("layer {index} {name}"), found, *size))
}

fn matrix(tensor: &str, matrix: &PackedMatrix, rows: usize, cols: usize) -> Result<(), EngineError> {
    check(tensor, (matrix.rows(), matrix.cols()), (rows, cols))
}

fn vector(tensor: &str, vector: &[f32], size: usize) -> Result<(), EngineError> {
    check(tensor, (1, vector.len()), (1, size))
}

fn check(
    tensor: &str,
    (rows, cols): (usize, usize),
    (want_rows, want_cols): (usize, usize),
) -> Result<(), EngineError> {
    if (rows, cols) == (want_rows, want_cols) {
        return Ok(());
    }
    let expected = format!("the configuration asks for {want_rows}x{want_cols}");
    Err(EngineError::Shape {
        tensor: tensor.to_owned(),
        expected,
        rows,
        cols,
    })
}
