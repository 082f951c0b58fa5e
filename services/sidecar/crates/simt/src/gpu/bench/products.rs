//! The matrix products of a layer.

use super::{Bench, Taken, Work, product};
use kvasir_cuda::ops::{self, GemmShape};
use kvasir_cuda::{Buffer, DeviceError};

impl Bench<'_> {
    /// The four products of a layer.
    pub(super) fn products(&self, rows: usize) -> Result<Taken, DeviceError> {
        let config = &self.size.config;
        let (hidden, width) = (config.hidden_size, config.intermediate_size);
        let queries = config.head_count * config.head_size;
        let mut all = Taken {
            milliseconds: 0.0,
            bytes: 0.0,
        };
        for (name, cols, inner, is_f32) in [
            ("qkv", self.size.qkv(), hidden, true),
            ("attention output", hidden, queries, true),
            ("gate, up", 2 * width, hidden, false),
            ("down", hidden, width, true),
        ] {
            let out_bytes = if is_f32 { 4 } else { 2 };
            let x = self.filled(rows * inner * 2)?;
            let out = self.device.allocate(rows * cols * out_bytes)?;
            // Four sets of weights in turn: one would stay in the L2.
            let weights: Vec<Buffer> = (0..4)
                .map(|_| self.filled(cols * inner * 2))
                .collect::<Result<_, _>>()?;
            let work = Work {
                bytes: (cols * inner * 2 + rows * (inner * 2 + cols * out_bytes)) as f64,
                operations: 2.0 * (rows * cols * inner) as f64,
            };
            let shape = format!("{rows} x {cols} x {inner}");
            let mut turn = 0;
            let mut next = || {
                turn += 1;
                product([&x, &weights[turn % 4], &out], [rows, cols, inner], is_f32)
            };
            all.milliseconds += self.line(&format!("product: {name}"), &shape, work, || {
                self.device.product(&next())
            })?;
            all.bytes += work.bytes;
            if name == "down" {
                let own = GemmShape::for_rows(rows);
                self.line(&format!("own product: {name}"), &shape, work, || {
                    ops::gemm(self.device, &next(), own)
                })?;
            }
        }
        Ok(all)
    }
}
