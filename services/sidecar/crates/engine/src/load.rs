//! From model files to packed weights.

use crate::engine::{Engine, EngineOptions, WeightFormat};
use crate::error::EngineError;
use crate::weights::{LayerExtras, LayerWeights, Weights};
use half::bf16;
use kvasir_kernels::{KvShards, PackedMatrix, WeightType};
use std::borrow::Cow;

use kvasir_model::{
    LayerTensor, ModelSource, Tensor, TensorId, TensorType,
    quant::{dequantize, quantize_q8_0},
};

impl Engine {
    /// Loads a model: packs its weights, reading every page of the files once, and makes the KV pool. `progress` is told (bytes done,
    /// bytes in all) after each tensor.
    ///
    /// # Errors
    /// See [`EngineError`]; messages name file and tensor.
    pub fn load(
        source: &ModelSource,
        options: EngineOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, EngineError> {
        // Before the files are read, which may take minutes.
        KvShards::check(source.config().kv_head_count, options.shard_count)?;
        let weights = Weights::load(source, options.weights, progress)?;
        Self::from_weights(source.config().clone(), source.revision().to_owned(), weights, options)
    }
}

impl Weights {
    /// Packs a model's weights; see [`Engine::load`].
    ///
    /// # Errors
    /// See [`EngineError`]; messages name file and tensor.
    pub fn load(
        source: &ModelSource,
        format: WeightFormat,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, EngineError> {
        let mut loader = Loader {
            source,
            format,
            progress,
            done: 0,
        };
        loader.weights()
    }
}

struct Loader<'a> {
    source: &'a ModelSource,
    format: WeightFormat,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
}

impl<'a> Loader<'a> {
    fn weights(&mut self) -> Result<Weights, EngineError> {
        let config = self.source.config();
        let embedding = self.matrix(TensorId::Embedding)?;
        let layers = (0..config.layer_count)
            .map(|index| self.layer(index))
            .collect::<Result<_, _>>()?;
        let output_norm = self.vector(TensorId::OutputNorm)?;
        let output = if config.tied_embeddings {
            None
        } else {
            Some(self.matrix(TensorId::Output)?)
        };
        Ok(Weights {
            embedding,
            output_norm,
            output,
            layers,
        })
    }

    fn layer(&mut self, index: usize) -> Result<LayerWeights, EngineError> {
        let id = |part| TensorId::Layer { index, part };
        Ok(LayerWeights {
            attention_norm: self.vector(id(LayerTensor::AttentionNorm))?,
            query: self.matrix(id(LayerTensor::Query))?,
            key: self.matrix(id(LayerTensor::Key))?,
            value: self.matrix(id(LayerTensor::Value))?,
            attention_output: self.matrix(id(LayerTensor::AttentionOutput))?,
            mlp_norm: self.vector(id(LayerTensor::MlpNorm))?,
            gate: self.matrix(id(LayerTensor::Gate))?,
            up: self.matrix(id(LayerTensor::Up))?,
            down: self.matrix(id(LayerTensor::Down))?,
            extras: self.extras(index)?,
        })
    }

    fn extras(&mut self, index: usize) -> Result<LayerExtras, EngineError> {
        let options = &self.source.config().options;
        let mut vector = |part| self.vector(TensorId::Layer { index, part });
        let mut extras = LayerExtras::default();
        if options.qkv_bias {
            extras.qkv_bias = Some([
                vector(LayerTensor::QueryBias)?,
                vector(LayerTensor::KeyBias)?,
                vector(LayerTensor::ValueBias)?,
            ]);
        }
        if options.attention_output_bias {
            extras.attention_output_bias = Some(vector(LayerTensor::AttentionOutputBias)?);
        }
        if options.head_norms {
            extras.head_norms = Some([vector(LayerTensor::QueryNorm)?, vector(LayerTensor::KeyNorm)?]);
        }
        Ok(extras)
    }

    fn matrix(&mut self, id: TensorId) -> Result<PackedMatrix, EngineError> {
        let tensor = self.source.tensor(id)?;
        let (weight_type, bytes) = converted(&tensor, self.format);
        let packed = PackedMatrix::pack(weight_type, tensor.rows, tensor.cols, &bytes).map_err(|source| {
            EngineError::Weight {
                tensor: tensor.name.clone().into_owned(),
                source,
            }
        })?;
        self.report(&tensor);
        Ok(packed)
    }

    fn vector(&mut self, id: TensorId) -> Result<Vec<f32>, EngineError> {
        let values = self.source.values(id)?;
        self.report(&self.source.tensor(id)?);
        Ok(values)
    }

    fn report(&mut self, tensor: &Tensor<'_>) {
        self.done += tensor.bytes.len() as u64;
        (self.progress)(self.done, self.source.total_bytes());
    }
}

/// How a stored matrix is kept in memory.
pub(crate) fn kept_type(tensor_type: TensorType, cols: usize, format: WeightFormat) -> WeightType {
    let same = kept_as(tensor_type);
    match format {
        WeightFormat::Stored => same.unwrap_or(WeightType::Q8_0),
        WeightFormat::F32 => WeightType::F32,
        WeightFormat::Bf16 => WeightType::Bf16Pairs,
        WeightFormat::Q8_0 if cols.is_multiple_of(TensorType::Q8_0.block_len()) => WeightType::Q8_0,
        WeightFormat::Q8_0 => same.unwrap_or(WeightType::F32),
    }
}

/// A matrix in the format asked for; the file's own bytes where that is what they are in.
fn converted<'t>(tensor: &'t Tensor<'_>, format: WeightFormat) -> (WeightType, Cow<'t, [u8]>) {
    let target = kept_type(tensor.tensor_type, tensor.cols, format);
    let same_bits = match target {
        WeightType::Bf16Pairs => tensor.tensor_type == TensorType::Bf16,
        _ => kept_as(tensor.tensor_type) == Some(target),
    };
    if same_bits {
        return (target, Cow::Borrowed(tensor.bytes.as_ref()));
    }
    let mut values = vec![0.0; tensor.rows * tensor.cols];
    dequantize(tensor.tensor_type, &tensor.bytes, &mut values);
    let bytes = match target {
        WeightType::Q8_0 => quantize_q8_0(&values),
        WeightType::Bf16Pairs => values
            .iter()
            .flat_map(|value| bf16::from_f32(*value).to_le_bytes())
            .collect(),
        _ => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    };
    (target, Cow::Owned(bytes))
}

/// The format whose packed form holds a stored type bit for bit. Q5_1 has none: it is rounded to Q8_0, whose steps are an eighth of its own.
fn kept_as(tensor_type: TensorType) -> Option<WeightType> {
    Some(match tensor_type {
        TensorType::F32 => WeightType::F32,
        TensorType::F16 => WeightType::F16,
        TensorType::Bf16 => WeightType::Bf16,
        TensorType::Q8_0 => WeightType::Q8_0,
        TensorType::Q4_0 => WeightType::Q4_0,
        TensorType::Q4_1 => WeightType::Q4_1,
        TensorType::Q5_0 => WeightType::Q5_0,
        TensorType::Q4_K => WeightType::Q4_K,
        TensorType::Q5_K => WeightType::Q5_K,
        TensorType::Q6_K => WeightType::Q6_K,
        TensorType::Q5_1 => return None,
    })
}
