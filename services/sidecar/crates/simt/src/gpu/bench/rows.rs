//! Kernels that read each row once.

use super::{Bench, Work, bytes_of};
use kvasir_cuda::DeviceError;
use kvasir_cuda::ops::{self, Activation, RmsNorm, RopeTable, RotateAndStore};

impl Bench<'_> {
    pub(super) fn row_kernels(&self, rows: usize) -> Result<(), DeviceError> {
        let config = &self.size.config;
        let (hidden_size, width) = (config.hidden_size, config.intermediate_size);
        let shape = format!("{rows} rows");
        let n = rows * hidden_size;
        let (hidden, delta, out) = (self.filled(n * 4)?, self.filled(n * 4)?, self.device.allocate(n * 2)?);
        let table = self.filled(config.vocab_size * hidden_size * 2)?;
        // Rows of the table far from each other, as those of a text are.
        let ids = self.uploaded(&bytes_of((0..rows).map(|row| (row * 7919 % config.vocab_size) as u32)))?;
        self.line("embedding", &shape, Work::bytes(n * 6), || {
            ops::embedding(self.device, &table, &ids, &hidden, [rows, hidden_size], 1.0)
        })?;
        let weight = self.filled(hidden_size * 4)?;
        self.line("rmsnorm + residual", &shape, Work::bytes(n * 14), || {
            let op = RmsNorm {
                hidden: &hidden,
                delta: Some(&delta),
                bias: None,
                weight: &weight,
                out: &out,
                row_index: None,
                rows,
                width: hidden_size,
                eps: 1e-5,
            };
            ops::rmsnorm(self.device, op)
        })?;
        let gate_up = self.filled(rows * width * 4)?;
        let gated = self.device.allocate(rows * width * 2)?;
        self.line("gated", &shape, Work::bytes(rows * width * 6), || {
            ops::gated(self.device, &gate_up, &gated, [rows, width], Activation::Silu)
        })?;
        self.rotation(rows, &shape)
    }

    fn rotation(&self, rows: usize, shape: &str) -> Result<(), DeviceError> {
        let config = &self.size.config;
        let (size, qkv_width, pool_shape) = (config.head_size, self.size.qkv(), self.size.pool(1));
        let (qkv, table) = (self.filled(rows * qkv_width * 4)?, self.filled(rows * size * 4)?);
        let bias = self.filled(qkv_width * 4)?;
        self.line("add_bias", shape, Work::bytes(rows * qkv_width * 8), || {
            ops::add_bias(self.device, &qkv, &bias, [rows, qkv_width])
        })?;
        let places = self.uploaded(&bytes_of(0..rows as u32))?;
        let frequencies = config.rope.inverse_frequencies();
        let frequencies: Vec<u8> = frequencies.iter().flat_map(|x| x.to_ne_bytes()).collect();
        let frequencies = self.uploaded(&frequencies)?;
        self.line("rope_table", shape, Work::bytes(rows * (4 + size * 4)), || {
            let op = RopeTable {
                positions: &places,
                frequencies: &frequencies,
                table: &table,
                rows,
                half: size / 2,
                scale: 1.0,
            };
            ops::rope_table(self.device, op)
        })?;
        let query = self.device.allocate(rows * config.head_count * size * 2)?;
        let blocks = rows.div_ceil(pool_shape.block_size);
        let pool = self.device.allocate(blocks * pool_shape.block_bytes())?;
        let work = Work::bytes(rows * (qkv_width * 6 + size * 4));
        self.line("rotate_and_store", shape, work, || {
            let op = RotateAndStore {
                qkv: &qkv,
                table: &table,
                norms: None,
                slots: &places,
                query: &query,
                pool: &pool,
                shape: pool_shape,
                layer: 0,
                head_count: config.head_count,
                rows,
                half: size / 2,
                eps: 1e-5,
            };
            ops::rotate_and_store(self.device, op)
        })?;
        Ok(())
    }
}
