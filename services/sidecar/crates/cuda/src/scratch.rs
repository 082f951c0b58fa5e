//! Memory of one pass, kept between passes and grown when one is larger than any before.

use crate::device::{Buffer, Device, DeviceError};
use kvasir_model::ModelConfig;

/// Buffers by what they hold; `[rows, …]` each but the last five.
#[derive(Default)]
pub struct Scratch {
    buffers: Vec<Buffer>,
}

/// Memory that is kept and grows.
#[derive(Default)]
pub struct Room(Option<Buffer>);

impl Room {
    /// At least so many bytes; what it held is lost when it grows.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn at_least(&mut self, device: &dyn Device, bytes: usize) -> Result<&Buffer, DeviceError> {
        match self.0.take().filter(|buffer| buffer.byte_len() >= bytes) {
            Some(kept) => Ok(self.0.insert(kept)),
            None => Ok(self.0.insert(device.allocate(bytes.next_power_of_two().max(16))?)),
        }
    }

    /// As it is.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when it was never asked for.
    pub fn get(&self) -> Result<&Buffer, DeviceError> {
        let missing = || DeviceError::Failed("memory that was never made".into());
        self.0.as_ref().ok_or_else(missing)
    }
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
const LOGITS: usize = 12;

/// Bytes of what does not go by rows alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScratchSizes {
    /// Cosines and sines.
    pub table: usize,
    /// Partial sums and stats of attention.
    pub partials: [usize; 2],
    /// The plan, token ids, and rows of logits.
    pub words: usize,
    /// Logits and adjusted copies of them.
    pub logits: usize,
}

impl Scratch {
    /// Makes room for `rows`. Tells whether anything moved.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn fit(
        &mut self,
        device: &dyn Device,
        config: &ModelConfig,
        rows: usize,
        others: ScratchSizes,
    ) -> Result<bool, DeviceError> {
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
        let [sums, stats] = others.partials;
        let others = [others.table, sums, stats, others.words, others.logits];
        let sizes = by_row.iter().map(|bytes| rows * bytes).chain(others);
        let mut moved = false;
        for (index, bytes) in sizes.enumerate() {
            match self.buffers.get(index) {
                Some(buffer) if buffer.byte_len() >= bytes => continue,
                Some(_) => self.buffers[index] = device.allocate(bytes.next_power_of_two())?,
                None => self.buffers.push(device.allocate(bytes.max(16))?),
            }
            moved = true;
        }
        Ok(moved)
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

    /// f32 `[rows, vocab]`, with room for as many adjusted rows after them.
    pub fn logits(&self) -> Result<&Buffer, DeviceError> {
        self.get(LOGITS)
    }
}
