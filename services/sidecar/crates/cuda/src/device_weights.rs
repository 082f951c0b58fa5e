//! A model's weights on the device: matrices in bf16, vectors in f32, matrices that meet the same rows joined.

use crate::device::{Buffer, Device, DeviceError};
use half::bf16;
use kvasir_engine::{LayerWeights, PackedMatrix, Weights};
use kvasir_model::ModelConfig;

/// All weights.
pub struct DeviceWeights {
    /// bf16 `[vocab, hidden]`.
    pub embedding: Buffer,
    /// f32 `[hidden]`.
    pub output_norm: Buffer,
    /// bf16 `[vocab, hidden]`; the embedding's memory when tied.
    pub head: Buffer,
    /// In order.
    pub layers: Vec<DeviceLayer>,
    /// Bytes that every decode step reads.
    pub bytes_per_step: usize,
}

/// Weights of one layer.
pub struct DeviceLayer {
    /// f32 `[hidden]`.
    pub attention_norm: Buffer,
    /// bf16 `[queries + keys + values, hidden]`.
    pub qkv: Buffer,
    /// f32 `[queries + keys + values]`.
    pub qkv_bias: Option<Buffer>,
    /// f32 `[head_size]` each.
    pub head_norms: Option<[Buffer; 2]>,
    /// bf16 `[hidden, queries]`.
    pub attention_output: Buffer,
    /// f32 `[hidden]`.
    pub attention_output_bias: Option<Buffer>,
    /// f32 `[hidden]`.
    pub mlp_norm: Buffer,
    /// bf16 `[2 · intermediate, hidden]`, gates first.
    pub gate_up: Buffer,
    /// bf16 `[hidden, intermediate]`.
    pub down: Buffer,
}

impl DeviceWeights {
    /// Weights of a model's sizes in memory that `fill` gives for a number of bytes: for measurements, where only sizes count. Without biases and
    /// head norms.
    ///
    /// # Errors
    /// What `fill` fails with.
    pub fn made_of(
        config: &ModelConfig,
        fill: &mut dyn FnMut(usize) -> Result<Buffer, DeviceError>,
    ) -> Result<Self, DeviceError> {
        let (hidden, width) = (config.hidden_size, config.intermediate_size);
        let queries = config.head_count * config.head_size;
        let kv = 2 * config.kv_head_count * config.head_size;
        let embedding = fill(2 * config.vocab_size * hidden)?;
        let head = match config.tied_embeddings {
            true => embedding.clone(),
            false => fill(2 * config.vocab_size * hidden)?,
        };
        let layers = (0..config.layer_count)
            .map(|_| {
                Ok(DeviceLayer {
                    attention_norm: fill(4 * hidden)?,
                    qkv: fill(2 * (queries + kv) * hidden)?,
                    qkv_bias: None,
                    head_norms: None,
                    attention_output: fill(2 * hidden * queries)?,
                    attention_output_bias: None,
                    mlp_norm: fill(4 * hidden)?,
                    gate_up: fill(2 * 2 * width * hidden)?,
                    down: fill(2 * hidden * width)?,
                })
            })
            .collect::<Result<Vec<_>, DeviceError>>()?;
        let bytes_per_step = bytes_per_step(&head, &layers);
        Ok(Self {
            embedding,
            output_norm: fill(4 * hidden)?,
            head,
            layers,
            bytes_per_step,
        })
    }

    /// Rounds to bf16 what is not, and uploads matrix by matrix.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Failed`].
    pub fn upload(device: &dyn Device, weights: &Weights) -> Result<Self, DeviceError> {
        let embedding = matrices(device, &[&weights.embedding])?;
        let head = match &weights.output {
            Some(output) => matrices(device, &[output])?,
            None => embedding.clone(),
        };
        let layers: Vec<DeviceLayer> = weights
            .layers
            .iter()
            .map(|l| layer(device, l))
            .collect::<Result<_, _>>()?;
        let bytes_per_step = bytes_per_step(&head, &layers);
        Ok(Self {
            embedding,
            output_norm: vector(device, &[&weights.output_norm])?,
            head,
            layers,
            bytes_per_step,
        })
    }
}

fn bytes_per_step(head: &Buffer, layers: &[DeviceLayer]) -> usize {
    let of_layer = |layer: &DeviceLayer| {
        let matrices = [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down];
        matrices.into_iter().map(Buffer::byte_len).sum::<usize>()
    };
    head.byte_len() + layers.iter().map(of_layer).sum::<usize>()
}

fn layer(device: &dyn Device, layer: &LayerWeights) -> Result<DeviceLayer, DeviceError> {
    let extras = &layer.extras;
    let norms = match &extras.head_norms {
        Some([query, key]) => Some([vector(device, &[query])?, vector(device, &[key])?]),
        None => None,
    };
    let bias = extras.qkv_bias.as_ref().map(|[q, k, v]| vector(device, &[q, k, v]));
    let output_bias = extras
        .attention_output_bias
        .as_ref()
        .map(|bias| vector(device, &[bias]));
    Ok(DeviceLayer {
        attention_norm: vector(device, &[&layer.attention_norm])?,
        qkv: matrices(device, &[&layer.query, &layer.key, &layer.value])?,
        qkv_bias: bias.transpose()?,
        head_norms: norms,
        attention_output: matrices(device, &[&layer.attention_output])?,
        attention_output_bias: output_bias.transpose()?,
        mlp_norm: vector(device, &[&layer.mlp_norm])?,
        gate_up: matrices(device, &[&layer.gate, &layer.up])?,
        down: matrices(device, &[&layer.down])?,
    })
}

/// Rows of several matrices, one after another.
fn matrices(device: &dyn Device, parts: &[&PackedMatrix]) -> Result<Buffer, DeviceError> {
    let elements: usize = parts.iter().map(|part| part.rows() * part.cols()).sum();
    let buffer = device.allocate(elements * 2)?;
    let mut offset = 0;
    for part in parts {
        let mut row = vec![0.0; part.cols()];
        let mut bytes = Vec::with_capacity(part.rows() * part.cols() * 2);
        for index in 0..part.rows() {
            part.dequantise_row(index, &mut row)
                .map_err(|error| DeviceError::Failed(error.to_string()))?;
            bytes.extend(row.iter().flat_map(|value| bf16::from_f32(*value).to_ne_bytes()));
        }
        device.write(&buffer, offset, &bytes)?;
        offset += bytes.len();
    }
    Ok(buffer)
}

fn vector(device: &dyn Device, parts: &[&Vec<f32>]) -> Result<Buffer, DeviceError> {
    let bytes: Vec<u8> = parts
        .iter()
        .flat_map(|part| part.iter())
        .flat_map(|x| x.to_ne_bytes())
        .collect();
    let buffer = device.allocate(bytes.len())?;
    device.write(&buffer, 0, &bytes)?;
    Ok(buffer)
}
