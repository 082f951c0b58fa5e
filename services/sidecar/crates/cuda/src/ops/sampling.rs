//! From logits to tokens.

use super::grid;
use crate::args::Args;
use crate::device::{Buffer, Device, DeviceError, Launch};

const THREADS: u32 = 512;

/// Most likely tokens that [`logprobs`] gives at most.
pub const TOP_MAX: usize = 32;

/// How one token is drawn; zeros as in `SamplingParams`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRow {
    /// Of the request.
    pub seed: u64,
    /// Of the token among the generated ones.
    pub index: u64,
    /// Row of the logits.
    pub row: u32,
    /// 0 takes the most likely.
    pub temperature: f32,
    /// 0 keeps all.
    pub top_k: u32,
    /// 0 or 1 keeps all.
    pub top_p: f32,
    /// 0 keeps all.
    pub min_p: f32,
    /// 0 or 1 keeps all.
    pub typical_p: f32,
}

impl SampleRow {
    /// As the kernel reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        Args::new()
            .u64(self.seed)
            .u64(self.index)
            .u32(self.row)
            .f32(self.temperature)
            .u32(self.top_k)
            .f32(self.top_p)
            .f32(self.min_p)
            .f32(self.typical_p)
            .finish()
    }
}

/// Draws a token a row: `kernels/sample.cu`. logits f32 `[_, vocab]`; `list` is [`SampleRow::to_bytes`] of `rows`; tokens u32 `[rows]`.
///
/// # Errors
/// [`DeviceError::Failed`].
pub fn sample(
    device: &dyn Device,
    [logits, list, tokens]: [&Buffer; 3],
    rows: &[SampleRow],
    vocab: usize,
) -> Result<(), DeviceError> {
    if rows.is_empty() {
        return Ok(());
    }
    let is_typical = rows.iter().any(|row| row.typical_p > 0.0 && row.typical_p < 1.0);
    let kernel = if is_typical { "sample_typical" } else { "sample" };
    let arguments = Args::new()
        .buffer(logits)
        .buffer(list)
        .buffer(tokens)
        .count(vocab)
        .finish();
    device.launch(blocks("sample", kernel, rows.len()), &arguments)
}

/// Which token's probability is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogprobRow {
    /// Row of the logits.
    pub row: u32,
    /// The token.
    pub token: LogprobToken,
}

/// How a token is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogprobToken {
    /// By its id.
    Given(u32),
    /// By its place in what [`sample`] wrote.
    Chosen(u32),
}

impl LogprobRow {
    /// As the kernel reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (token, is_chosen) = match self.token {
            LogprobToken::Given(token) => (token, 0),
            LogprobToken::Chosen(place) => (place, 1),
        };
        Args::new().u32(self.row).u32(token).u32(is_chosen).finish()
    }
}

/// Operands of [`logprobs`].
pub struct Logprobs<'a> {
    /// f32 `[_, vocab]`.
    pub logits: &'a Buffer,
    /// [`LogprobRow::to_bytes`].
    pub rows: &'a Buffer,
    /// u32: what [`sample`] wrote.
    pub chosen: &'a Buffer,
    /// f32 `[rows, 1 + top]`.
    pub out: &'a Buffer,
    /// u32 `[rows, top]`.
    pub top_tokens: &'a Buffer,
    /// u32 `[rows]`.
    pub ranks: &'a Buffer,
    /// Rows.
    pub row_count: usize,
    /// Tokens that there are.
    pub vocab: usize,
    /// Most likely tokens told, at most [`TOP_MAX`].
    pub top: usize,
}

/// `ln p` and rank of one token a row, and `ln p` of the `top` most likely: `kernels/logprobs.cu`.
///
/// # Errors
/// [`DeviceError::Unsupported`] when `top` is above [`TOP_MAX`] or the vocabulary, [`DeviceError::Failed`].
pub fn logprobs(device: &dyn Device, op: &Logprobs<'_>) -> Result<(), DeviceError> {
    if op.top > TOP_MAX.min(op.vocab) {
        return Err(DeviceError::Unsupported {
            what: "top_logprobs",
            value: op.top,
            allowed: "at most 32",
        });
    }
    if op.row_count == 0 {
        return Ok(());
    }
    let arguments = Args::new()
        .buffer(op.logits)
        .buffer(op.rows)
        .buffer(op.chosen)
        .buffer(op.out)
        .buffer(op.top_tokens)
        .buffer(op.ranks)
        .count(op.vocab)
        .count(op.top)
        .finish();
    device.launch(blocks("logprobs", "logprobs", op.row_count), &arguments)
}

fn blocks(file: &'static str, kernel: &'static str, rows: usize) -> Launch {
    Launch {
        file,
        kernel,
        grid: grid(rows, 1),
        threads: THREADS,
        shared_bytes: 0,
    }
}
