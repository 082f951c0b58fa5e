//! A model's weights on the device: matrices in bf16, vectors in f32, matrices that meet the same rows joined.

use crate::device::{Buffer, Device, DeviceError};
use half::bf16;
use kvasir_engine::{EngineError, LayerExtras, PackedMatrix, Weights};
use kvasir_model::{LayerTensor, ModelConfig, ModelSource, TensorId, TensorType, quant::dequantize};

/// Rows that are worth a thread.
const ROWS_MIN: usize = 256;

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
    /// Weights of a model's sizes in memory that `fill` gives for a number of bytes: for measurements, where only sizes count.
    ///
    /// # Errors
    /// What `fill` fails with.
    pub fn made_of(
        config: &ModelConfig,
        fill: &mut dyn FnMut(usize) -> Result<Buffer, DeviceError>,
    ) -> Result<Self, DeviceError> {
        assemble(config, &mut |ids| fill(byte_len(ids, config)))
    }

    /// Rounds to bf16 what is not, and uploads part by part.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Failed`].
    pub fn upload(device: &dyn Device, config: &ModelConfig, weights: &Weights) -> Result<Self, DeviceError> {
        assemble(config, &mut |ids| {
            let mut upload = Upload::new(device, byte_len(ids, config))?;
            for id in ids {
                match held(weights, *id).ok_or_else(|| DeviceError::Failed(format!("{id:?} is missing")))? {
                    Held::Matrix(matrix) => {
                        let row = |index: usize, out: &mut [f32]| {
                            let row = matrix.dequantise_row(index, out);
                            row.map_err(|error| DeviceError::Failed(error.to_string()))
                        };
                        upload.write(&rounded(matrix.rows(), matrix.cols(), &row)?)?;
                    }
                    Held::Vector(vector) => upload.write(&bytes_of(vector))?,
                }
            }
            Ok(upload.buffer)
        })
    }

    /// The same from the model's files, which are read once, front to back, and of which the host keeps nothing. `progress` is told (bytes done,
    /// bytes in all) after each tensor.
    ///
    /// # Errors
    /// See [`EngineError`]; messages name file and tensor.
    pub fn load(
        device: &dyn Device,
        source: &ModelSource,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, EngineError> {
        let config = source.config();
        let refused = |error: DeviceError| EngineError::Configuration(error.to_string());
        let mut done = 0;
        assemble(config, &mut |ids| {
            let mut upload = Upload::new(device, byte_len(ids, config)).map_err(refused)?;
            for id in ids {
                let tensor = source.tensor(*id)?;
                let written = if is_vector(*id, config) {
                    upload.write(&bytes_of(&source.values(*id)?))
                } else if tensor.tensor_type == TensorType::Bf16 {
                    upload.write(&tensor.bytes)
                } else {
                    let row_bytes = tensor.bytes.len() / tensor.rows.max(1);
                    let row = |index: usize, out: &mut [f32]| {
                        dequantize(tensor.tensor_type, &tensor.bytes[index * row_bytes..][..row_bytes], out);
                        Ok(())
                    };
                    rounded(tensor.rows, tensor.cols, &row).and_then(|bytes| upload.write(&bytes))
                };
                written.map_err(refused)?;
                done += tensor.bytes.len() as u64;
                progress(done, source.total_bytes());
            }
            Ok(upload.buffer)
        })
    }
}

/// Asks for each buffer by the weights that lie in it, one after another.
fn assemble<E>(
    config: &ModelConfig,
    part: &mut dyn FnMut(&[TensorId]) -> Result<Buffer, E>,
) -> Result<DeviceWeights, E> {
    let embedding = part(&[TensorId::Embedding])?;
    let head = match config.tied_embeddings {
        true => embedding.clone(),
        false => part(&[TensorId::Output])?,
    };
    let output_norm = part(&[TensorId::OutputNorm])?;
    let layers = (0..config.layer_count)
        .map(|index| layer(index, config, part))
        .collect::<Result<Vec<_>, E>>()?;
    let bytes_per_step = bytes_per_step(&head, &layers);
    Ok(DeviceWeights {
        embedding,
        output_norm,
        head,
        layers,
        bytes_per_step,
    })
}

fn layer<E>(
    index: usize,
    config: &ModelConfig,
    part: &mut dyn FnMut(&[TensorId]) -> Result<Buffer, E>,
) -> Result<DeviceLayer, E> {
    use LayerTensor as T;
    let options = &config.options;
    let mut of = |parts: &[T]| {
        let ids: Vec<TensorId> = parts
            .iter()
            .map(|part| TensorId::Layer { index, part: *part })
            .collect();
        part(&ids)
    };
    Ok(DeviceLayer {
        attention_norm: of(&[T::AttentionNorm])?,
        qkv: of(&[T::Query, T::Key, T::Value])?,
        qkv_bias: match options.qkv_bias {
            true => Some(of(&[T::QueryBias, T::KeyBias, T::ValueBias])?),
            false => None,
        },
        head_norms: match options.head_norms {
            true => Some([of(&[T::QueryNorm])?, of(&[T::KeyNorm])?]),
            false => None,
        },
        attention_output: of(&[T::AttentionOutput])?,
        attention_output_bias: match options.attention_output_bias {
            true => Some(of(&[T::AttentionOutputBias])?),
            false => None,
        },
        mlp_norm: of(&[T::MlpNorm])?,
        gate_up: of(&[T::Gate, T::Up])?,
        down: of(&[T::Down])?,
    })
}

fn is_vector(id: TensorId, config: &ModelConfig) -> bool {
    id.shape(config).0 == 1
}

/// Matrices are bf16, vectors f32.
fn byte_len(ids: &[TensorId], config: &ModelConfig) -> usize {
    let one = |id: &TensorId| {
        let (rows, cols) = id.shape(config);
        rows * cols * if is_vector(*id, config) { 4 } else { 2 }
    };
    ids.iter().map(one).sum()
}

/// A buffer that is written from its beginning on.
struct Upload<'d> {
    device: &'d dyn Device,
    buffer: Buffer,
    written: usize,
}

impl<'d> Upload<'d> {
    fn new(device: &'d dyn Device, bytes: usize) -> Result<Self, DeviceError> {
        Ok(Self {
            device,
            buffer: device.allocate(bytes)?,
            written: 0,
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DeviceError> {
        self.device.write(&self.buffer, self.written, bytes)?;
        self.written += bytes.len();
        Ok(())
    }
}

enum Held<'a> {
    Matrix(&'a PackedMatrix),
    Vector(&'a [f32]),
}

fn held(weights: &Weights, id: TensorId) -> Option<Held<'_>> {
    use Held::{Matrix, Vector};
    let (index, part) = match id {
        TensorId::Embedding => return Some(Matrix(&weights.embedding)),
        TensorId::Output => return weights.output.as_ref().map(Matrix),
        TensorId::OutputNorm => return Some(Vector(&weights.output_norm)),
        TensorId::Layer { index, part } => (index, part),
    };
    let layer = weights.layers.get(index)?;
    let extra = |of: fn(&LayerExtras) -> Option<&Vec<f32>>| of(&layer.extras).map(|vector| Vector(vector));
    match part {
        LayerTensor::AttentionNorm => Some(Vector(&layer.attention_norm)),
        LayerTensor::Query => Some(Matrix(&layer.query)),
        LayerTensor::Key => Some(Matrix(&layer.key)),
        LayerTensor::Value => Some(Matrix(&layer.value)),
        LayerTensor::AttentionOutput => Some(Matrix(&layer.attention_output)),
        LayerTensor::MlpNorm => Some(Vector(&layer.mlp_norm)),
        LayerTensor::Gate => Some(Matrix(&layer.gate)),
        LayerTensor::Up => Some(Matrix(&layer.up)),
        LayerTensor::Down => Some(Matrix(&layer.down)),
        LayerTensor::QueryBias => extra(|extras| extras.qkv_bias.as_ref().map(|[query, ..]| query)),
        LayerTensor::KeyBias => extra(|extras| extras.qkv_bias.as_ref().map(|[_, key, _]| key)),
        LayerTensor::ValueBias => extra(|extras| extras.qkv_bias.as_ref().map(|[.., value]| value)),
        LayerTensor::AttentionOutputBias => extra(|extras| extras.attention_output_bias.as_ref()),
        LayerTensor::QueryNorm => extra(|extras| extras.head_norms.as_ref().map(|[query, _]| query)),
        LayerTensor::KeyNorm => extra(|extras| extras.head_norms.as_ref().map(|[_, key]| key)),
    }
}

/// Writes one row of a matrix.
type RowOf<'a> = dyn Fn(usize, &mut [f32]) -> Result<(), DeviceError> + Sync + 'a;

/// Rows in bf16, on all cores where there are many.
fn rounded(rows: usize, cols: usize, row: &RowOf<'_>) -> Result<Vec<u8>, DeviceError> {
    let mut bytes = vec![0; rows * cols * 2];
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let each = rows.div_ceil(cores).max(ROWS_MIN);
    std::thread::scope(|scope| {
        let threads: Vec<_> = bytes
            .chunks_mut((each * cols * 2).max(1))
            .enumerate()
            .map(|(thread, out)| {
                scope.spawn(move || {
                    let mut values = vec![0.0; cols];
                    out.chunks_exact_mut((cols * 2).max(1))
                        .enumerate()
                        .try_for_each(|(index, out)| {
                            row(thread * each + index, &mut values)?;
                            for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(&values) {
                                *out = bf16::from_f32(*value).to_ne_bytes();
                            }
                            Ok(())
                        })
                })
            })
            .collect();
        let lost = || DeviceError::Failed("a thread that rounds weights ended".into());
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| lost())?)
    })?;
    Ok(bytes)
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

fn bytes_per_step(head: &Buffer, layers: &[DeviceLayer]) -> usize {
    let of_layer = |layer: &DeviceLayer| {
        let matrices = [&layer.qkv, &layer.attention_output, &layer.gate_up, &layer.down];
        matrices.into_iter().map(Buffer::byte_len).sum::<usize>()
    };
    head.byte_len() + layers.iter().map(of_layer).sum::<usize>()
}
