//! The layers of a pass, as launches.

use crate::attend::{Attend, DeviceRows, attend};
use crate::device::{Buffer, Device, DeviceError};
use crate::device_weights::{DeviceLayer, DeviceWeights};
use crate::ops::{self, Activation, Gemm, PoolShape, RmsNorm, RopeTable, RotateAndStore};
use crate::scratch::Scratch;
use crate::step_plan::{Division, StepRows};
use kvasir_model::ModelConfig;

/// A model on a device, and the memory that passes use.
pub struct Transformer<'a> {
    /// Where.
    pub device: &'a dyn Device,
    /// Sizes.
    pub config: &'a ModelConfig,
    /// Weights.
    pub weights: &'a DeviceWeights,
    /// f32 `[half]`: radians of a position.
    pub frequencies: &'a Buffer,
    /// KV.
    pub pool: &'a Buffer,
    /// Its sizes.
    pub shape: PoolShape,
    /// How attention is divided.
    pub division: Division,
    /// Of all layers in turn.
    pub scratch: &'a Scratch,
}

impl Transformer<'_> {
    /// From token ids, u32 by row, to logits of the rows in `index`, of which there are `logit_rows`. Launches and nothing else.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`], [`DeviceError::Failed`].
    pub fn run(
        &self,
        plan: &StepRows,
        rows: &DeviceRows,
        ids: &Buffer,
        index: &Buffer,
        logit_rows: usize,
    ) -> Result<(), DeviceError> {
        let (device, config, scratch) = (self.device, self.config, self.scratch);
        let (count, hidden) = (plan.positions.len(), config.hidden_size);
        let scale = config.options.embedding_scale;
        let table = &self.weights.embedding;
        ops::embedding(device, table, ids, scratch.hidden()?, [count, hidden], scale)?;
        let op = RopeTable {
            positions: &rows.positions,
            frequencies: self.frequencies,
            table: scratch.table()?,
            rows: count,
            half: self.half(),
            scale: config.rope.attention_factor(),
        };
        ops::rope_table(device, op)?;
        for (layer_index, layer) in self.weights.layers.iter().enumerate() {
            self.run_layer(layer_index, layer, count, plan, rows)?;
        }
        if logit_rows == 0 {
            return Ok(());
        }
        self.norm(None, &self.weights.output_norm, logit_rows, Some(index), true)?;
        device.product(&Gemm {
            x: scratch.normed()?,
            weights: &self.weights.head,
            out: scratch.logits()?,
            is_f32: true,
            rows: logit_rows,
            cols: config.vocab_size,
            inner: hidden,
        })
    }

    /// Rotated pairs of a head.
    fn half(&self) -> usize {
        self.frequencies.byte_len() / 4
    }

    /// `hidden += delta + bias`, `normed = norm(hidden)`.
    fn norm(
        &self,
        bias: Option<&Buffer>,
        weight: &Buffer,
        rows: usize,
        row_index: Option<&Buffer>,
        has_delta: bool,
    ) -> Result<(), DeviceError> {
        let scratch = self.scratch;
        let op = RmsNorm {
            hidden: scratch.hidden()?,
            delta: if has_delta { Some(scratch.delta()?) } else { None },
            bias,
            weight,
            out: scratch.normed()?,
            row_index,
            rows,
            width: self.config.hidden_size,
            eps: self.config.rms_norm_eps,
        };
        ops::rmsnorm(self.device, op)
    }

    fn run_layer(
        &self,
        index: usize,
        layer: &DeviceLayer,
        rows: usize,
        plan: &StepRows,
        device_rows: &DeviceRows,
    ) -> Result<(), DeviceError> {
        let (device, config, scratch) = (self.device, self.config, self.scratch);
        let (hidden, size) = (config.hidden_size, config.head_size);
        let queries = config.head_count * size;
        let qkv_width = queries + 2 * config.kv_head_count * size;
        let product = |x: &Buffer, weights: &Buffer, out: &Buffer, is_f32, cols, inner| {
            device.product(&Gemm {
                x,
                weights,
                out,
                is_f32,
                rows,
                cols,
                inner,
            })
        };
        self.norm(None, &layer.attention_norm, rows, None, index > 0)?;
        product(scratch.normed()?, &layer.qkv, scratch.qkv()?, true, qkv_width, hidden)?;
        if let Some(bias) = &layer.qkv_bias {
            ops::add_bias(device, scratch.qkv()?, bias, [rows, qkv_width])?;
        }
        let op = RotateAndStore {
            qkv: scratch.qkv()?,
            table: scratch.table()?,
            norms: layer.head_norms.as_ref().map(|[query, key]| [query, key]),
            slots: &device_rows.slots,
            query: scratch.query()?,
            pool: self.pool,
            shape: self.shape,
            layer: index,
            head_count: config.head_count,
            rows,
            half: self.half(),
            eps: config.rms_norm_eps,
        };
        ops::rotate_and_store(device, op)?;
        let partials = scratch.partials()?;
        let op = Attend {
            query: scratch.query()?,
            pool: self.pool,
            out: scratch.attended()?,
            partials: (self.division.partition > 0).then_some(partials),
            shape: self.shape,
            layer: index,
            head_count: config.head_count,
            partition: self.division.partition,
        };
        attend(device, plan, device_rows, &op)?;
        product(
            scratch.attended()?,
            &layer.attention_output,
            scratch.delta()?,
            true,
            hidden,
            queries,
        )?;
        self.norm(layer.attention_output_bias.as_ref(), &layer.mlp_norm, rows, None, true)?;
        let width = config.intermediate_size;
        product(
            scratch.normed()?,
            &layer.gate_up,
            scratch.gate_up()?,
            false,
            2 * width,
            hidden,
        )?;
        let activation = match config.options.activation {
            kvasir_model::Activation::Silu => Activation::Silu,
            kvasir_model::Activation::GeluTanh => Activation::GeluTanh,
        };
        ops::gated(device, scratch.gate_up()?, scratch.gated()?, [rows, width], activation)?;
        product(scratch.gated()?, &layer.down, scratch.delta()?, true, hidden, width)
    }
}
