//! Memory of one pass, kept between passes and grown when one is larger than any before.

use crate::device::{Buffer, Device, DeviceError};
use kvasir_model::ModelConfig;

/// Buffers by what they hold; `[rows, …]` each but the last four.
#[derive(Default)]
pub struct Scratch {
    buffers: Vec<Buffer>,
}

const HIDDEN: usize = 0;
const DELTA: usize = 1;
const NORMED: usize = 2;
const QKV: usize = 3;
const QUERY: usize = 4;
const ATTENDED: usize = 5;
const GATE_UP: usize = 6;
const GATED: usize = 7;
const TABLE: usize = 8;
const SUMS: usize = 9;
const STATS: usize = 10;
const WORDS: usize = 11;

impl Scratch {
    /// Makes room for `rows`; `others` are the bytes of the rope table, partial sums and stats, and the plan's words.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn fit(
        &mut self,
        device: &dyn Device,
        config: &ModelConfig,
        rows: usize,
        others: [usize; 4],
    ) -> Result<(), DeviceError> {
        let (hidden, width) = (config.hidden_size, config.intermediate_size);
        let queries = config.head_count * config.head_size;
        let qkv = queries + 2 * config.kv_head_count * config.head_size;
        let by_row = [
            4 * hidden,
            4 * hidden,
            2 * hidden,
            4 * qkv,
            2 * queries,
            2 * queries,
            4 * width,
            2 * width,
        ];
        let sizes: Vec<usize> = by_row.iter().map(|bytes| rows * bytes).chain(others).collect();
        for (index, bytes) in sizes.into_iter().enumerate() {
            match self.buffers.get(index) {
                Some(buffer) if buffer.byte_len() >= bytes => {}
                Some(_) => self.buffers[index] = device.allocate(bytes.next_power_of_two())?,
                None => self.buffers.push(device.allocate(bytes.max(16))?),
            }
        }
        Ok(())
    }

    fn get(&self, index: usize) -> Result<&Buffer, DeviceError> {
        let missing = || DeviceError::Failed("a pass without scratch memory".into());
        self.buffers.get(index).ok_or_else(missing)
    }

    /// f32 `[rows, hidden]`: the residual stream.
    pub fn hidden(&self) -> Result<&Buffer, DeviceError> {
        self.get(HIDDEN)
    }

    /// f32 `[rows, hidden]`: what the last product adds to it.
    pub fn delta(&self) -> Result<&Buffer, DeviceError> {
        self.get(DELTA)
    }

    /// bf16 `[rows, hidden]`.
    pub fn normed(&self) -> Result<&Buffer, DeviceError> {
        self.get(NORMED)
    }

    /// f32 `[rows, queries + keys + values]`.
    pub fn qkv(&self) -> Result<&Buffer, DeviceError> {
        self.get(QKV)
    }

    /// bf16 `[rows, queries]`, rotated.
    pub fn query(&self) -> Result<&Buffer, DeviceError> {
        self.get(QUERY)
    }

    /// bf16 `[rows, queries]`.
    pub fn attended(&self) -> Result<&Buffer, DeviceError> {
        self.get(ATTENDED)
    }

    /// bf16 `[rows, 2 · intermediate]`.
    pub fn gate_up(&self) -> Result<&Buffer, DeviceError> {
        self.get(GATE_UP)
    }

    /// bf16 `[rows, intermediate]`.
    pub fn gated(&self) -> Result<&Buffer, DeviceError> {
        self.get(GATED)
    }

    /// Cosines and sines.
    pub fn table(&self) -> Result<&Buffer, DeviceError> {
        self.get(TABLE)
    }

    /// Partial sums and stats of attention.
    pub fn partials(&self) -> Result<[&Buffer; 2], DeviceError> {
        Ok([self.get(SUMS)?, self.get(STATS)?])
    }

    /// The plan, token ids, and rows of logits.
    pub fn words(&self) -> Result<&Buffer, DeviceError> {
        self.get(WORDS)
    }
}
