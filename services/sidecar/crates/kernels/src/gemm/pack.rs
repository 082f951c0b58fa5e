//! Weights as the multiplication wants them: panels of 16 output rows, their elements side by side.
//!
//! ```text
//! f32, f16, bf16   panel = [cols][16 rows], elements in their own width
//! bf16 pairs       panel = [cols / 2][16 rows][2 columns]
//! q8_0             panel = [cols / 32 blocks][8 groups of 4 columns][16 rows][4 columns], bytes of weight + 128, then scales
//! q4_0, q4_1       panel = [cols / 32 blocks][4][16 rows][4 columns], low nibble columns 4i.., high nibble columns 16 + 4i.., then scales
//! scales           [cols / 32 blocks][16 rows] of f16; for q4_1 the 16 minima follow each block's 16 scales
//! q5_0, q*_k       see the blocks module
//! ```
//!
//! A weight takes the bits it took in the file (Q4_K and Q5_K 1/8 more: their 6-bit scales lie in bytes). Rows beyond the last are zero. The
//! block formats are ggml's.

use super::blocks::{
    MINIMA_BYTES, SIGNED_BYTES, SUPER_BLOCK, SUPER_BLOCKS, pack_q5_0, pack_q6_k, pack_with_minima, place_nibbles, value,
};
use crate::aligned::AlignedBytes;
use crate::error::{KernelError, expect_len};
use crate::simd::{BLOCK, LANES};
use half::f16;

/// Number format of a weight matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(non_camel_case_types)]
pub enum WeightType {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16, multiplied in f32.
    Bf16,
    /// bfloat16, multiplied with activations rounded to bfloat16, summed in f32.
    Bf16Pairs,
    /// Blocks of 32: f16 scale d, 32 signed bytes q; `w = d q`.
    Q8_0,
    /// Blocks of 32: f16 scale d, 32 nibbles q; `w = d (q - 8)`.
    Q4_0,
    /// Blocks of 32: f16 scale d, f16 minimum m, 32 nibbles q; `w = d q + m`.
    Q4_1,
    /// Blocks of 32: f16 scale d, 32 numbers q of 5 bits; `w = d (q - 16)`.
    Q5_0,
    /// Super-blocks of 256, f16 d and dmin; 8 blocks of 32 nibbles q with 6-bit scale s and minimum m; `w = d s q - dmin m`.
    Q4_K,
    /// The same with q of 5 bits.
    Q5_K,
    /// Super-blocks of 256, f16 d; 16 sub-blocks of 16 numbers q of 6 bits with signed 8-bit scale s; `w = d s (q - 32)`.
    Q6_K,
}

impl WeightType {
    /// Whether it is multiplied with activations quantised to 8 bits.
    pub fn is_quantised(self) -> bool {
        self.form() == Form::Quantised
    }

    /// Whether it is multiplied with activations rounded to bf16.
    pub fn is_bf16_pairs(self) -> bool {
        self.form() == Form::Pairs
    }

    /// What the activations must be.
    pub(super) fn form(self) -> Form {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 => Form::Single,
            Self::Bf16Pairs => Form::Pairs,
            _ => Form::Quantised,
        }
    }

    /// Consecutive columns that share a unit of storage.
    pub fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::Bf16 | Self::Bf16Pairs => 1,
            Self::Q8_0 | Self::Q4_0 | Self::Q4_1 | Self::Q5_0 => BLOCK,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => SUPER_BLOCK,
        }
    }

    /// Bytes of one row of `cols` weights, before packing.
    pub fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::F32 => cols * 4,
            Self::F16 | Self::Bf16 | Self::Bf16Pairs => cols * 2,
            Self::Q8_0 => cols / BLOCK * 34,
            Self::Q4_0 => cols / BLOCK * 18,
            Self::Q4_1 => cols / BLOCK * 20,
            Self::Q5_0 => cols / BLOCK * 22,
            Self::Q4_K => cols / SUPER_BLOCK * 144,
            Self::Q5_K => cols / SUPER_BLOCK * 176,
            Self::Q6_K => cols / SUPER_BLOCK * 210,
        }
    }

    /// Bytes of a packed matrix.
    pub fn packed_bytes(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(LANES) * self.panel_stride(cols)
    }

    fn panel_stride(self, cols: usize) -> usize {
        let (weights, scales) = self.panel_bytes(cols);
        (weights + scales).next_multiple_of(64)
    }

    /// Bytes of a panel's weights and of its scales.
    fn panel_bytes(self, cols: usize) -> (usize, usize) {
        let blocks = cols / BLOCK;
        match self {
            Self::F32 => (cols * LANES * 4, 0),
            Self::F16 | Self::Bf16 => (cols * LANES * 2, 0),
            Self::Bf16Pairs => (cols.next_multiple_of(2) * LANES * 2, 0),
            Self::Q8_0 => (blocks * 512, blocks * 32),
            Self::Q4_0 => (blocks * 256, blocks * 32),
            Self::Q4_1 => (blocks * 256, blocks * 64),
            Self::Q5_0 => (blocks * 320, blocks * 32),
            Self::Q4_K => (blocks * 256, blocks / SUPER_BLOCKS * MINIMA_BYTES),
            Self::Q5_K => (blocks * 320, blocks / SUPER_BLOCKS * MINIMA_BYTES),
            Self::Q6_K => (blocks * 384, blocks / SUPER_BLOCKS * SIGNED_BYTES),
        }
    }
}

/// What weights are multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// f32.
    Single,
    /// Pairs of bf16.
    Pairs,
    /// Blocks of 8-bit integers.
    Quantised,
}

/// A weight matrix `[rows out][cols in]`, packed.
pub struct PackedMatrix {
    weight_type: WeightType,
    rows: usize,
    cols: usize,
    panel_stride: usize,
    data: AlignedBytes,
}

/// One panel: 16 rows.
#[derive(Clone, Copy)]
pub(crate) struct Panel<'a> {
    pub(crate) weight_type: WeightType,
    pub(crate) weights: &'a [u8],
    pub(crate) scales: &'a [u8],
}

impl PackedMatrix {
    /// Packs a row-major matrix of the type's own block layout. Reads `source` once, front to back.
    ///
    /// # Errors
    /// [`KernelError::Empty`], [`KernelError::PartialBlock`], or [`KernelError::ShapeMismatch`] when `source` is not `rows` rows.
    pub fn pack(weight_type: WeightType, rows: usize, cols: usize, source: &[u8]) -> Result<Self, KernelError> {
        if rows == 0 || cols == 0 {
            return Err(KernelError::Empty { what: "weight matrix" });
        }
        let block_len = weight_type.block_len();
        if !cols.is_multiple_of(block_len) {
            return Err(KernelError::PartialBlock { block_len, cols });
        }
        let row_bytes = weight_type.row_bytes(cols);
        expect_len("weight bytes", rows * row_bytes, source.len())?;
        let (weight_bytes, scale_bytes) = weight_type.panel_bytes(cols);
        let panel_stride = weight_type.panel_stride(cols);
        let mut data = AlignedBytes::zeroed(weight_type.packed_bytes(rows, cols));
        for (row, from) in source.chunks_exact(row_bytes).enumerate() {
            let start = row / LANES * panel_stride;
            let panel = &mut data.bytes_mut()[start..start + weight_bytes + scale_bytes];
            let (weights, scales) = panel.split_at_mut(weight_bytes);
            pack_row(weight_type, row % LANES, from, weights, scales);
        }
        Ok(Self {
            weight_type,
            rows,
            cols,
            panel_stride,
            data,
        })
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Number format.
    pub fn weight_type(&self) -> WeightType {
        self.weight_type
    }

    /// Bytes that one multiplication reads.
    pub fn byte_len(&self) -> usize {
        self.panel_count() * self.panel_stride
    }

    pub(crate) fn panel_count(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    #[inline(always)]
    pub(crate) fn panel(&self, index: usize) -> Panel<'_> {
        let (weight_bytes, scale_bytes) = self.weight_type.panel_bytes(self.cols);
        let start = index * self.panel_stride;
        let (weights, scales) = self.data.bytes()[start..start + weight_bytes + scale_bytes].split_at(weight_bytes);
        Panel {
            weight_type: self.weight_type,
            weights,
            scales,
        }
    }

    /// Row `row` in f32, exactly as its format defines it: how embeddings are looked up.
    ///
    /// # Errors
    /// [`KernelError::ShapeMismatch`] when `out` is not `cols` long or there is no such row.
    pub fn dequantise_row(&self, row: usize, out: &mut [f32]) -> Result<(), KernelError> {
        expect_len("embedding row", self.cols, out.len())?;
        if row >= self.rows {
            return Err(KernelError::ShapeMismatch {
                what: "row index + 1",
                expected: self.rows,
                actual: row + 1,
            });
        }
        let (panel, lane) = (self.panel(row / LANES), row % LANES);
        let u16_at = |bytes: &[u8], index: usize| u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]);
        for (col, out) in out.iter_mut().enumerate() {
            let at = col * LANES + lane;
            *out = match self.weight_type {
                WeightType::F32 => f32::from_le_bytes(std::array::from_fn(|i| panel.weights[4 * at + i])),
                WeightType::F16 => f16::from_bits(u16_at(panel.weights, at)).to_f32(),
                WeightType::Bf16 => half::bf16::from_bits(u16_at(panel.weights, at)).to_f32(),
                WeightType::Bf16Pairs => {
                    half::bf16::from_bits(u16_at(panel.weights, (col / 2 * LANES + lane) * 2 + col % 2)).to_f32()
                }
                blocks => value(blocks, (panel.weights, panel.scales), col / BLOCK, col % BLOCK, lane),
            };
        }
        Ok(())
    }
}

/// Spreads one row over its lane of a panel.
fn pack_row(weight_type: WeightType, lane: usize, from: &[u8], weights: &mut [u8], scales: &mut [u8]) {
    match weight_type {
        WeightType::F32 => spread::<4>(lane, from, weights),
        WeightType::F16 | WeightType::Bf16 => spread::<2>(lane, from, weights),
        WeightType::Bf16Pairs => {
            for (col, element) in from.as_chunks::<2>().0.iter().enumerate() {
                weights[(col / 2 * LANES + lane) * 4 + col % 2 * 2..][..2].copy_from_slice(element);
            }
        }
        WeightType::Q8_0 => {
            for (block, bytes) in from.chunks_exact(34).enumerate() {
                scales[block * 32 + lane * 2..][..2].copy_from_slice(&bytes[..2]);
                for (group, quad) in bytes[2..].chunks_exact(4).enumerate() {
                    let to = &mut weights[block * 512 + group * 64 + lane * 4..][..4];
                    for (to, from) in to.iter_mut().zip(quad) {
                        *to = from ^ 0x80;
                    }
                }
            }
        }
        WeightType::Q4_0 | WeightType::Q4_1 => {
            // ggml: byte i of a block holds column i in its low and column 16 + i in its high nibble, as the panels do.
            let header = if weight_type == WeightType::Q4_0 { 2 } else { 4 };
            for (block, bytes) in from.chunks_exact(header + 16).enumerate() {
                for part in 0..header / 2 {
                    let to = (block * (header / 2) + part) * 32 + lane * 2;
                    scales[to..to + 2].copy_from_slice(&bytes[part * 2..part * 2 + 2]);
                }
                place_nibbles(lane, &bytes[header..], &mut weights[block * 256..][..256]);
            }
        }
        WeightType::Q5_0 => pack_q5_0(lane, from, weights, scales),
        WeightType::Q4_K => pack_with_minima::<144, 256>(lane, from, weights, scales),
        WeightType::Q5_K => pack_with_minima::<176, 320>(lane, from, weights, scales),
        WeightType::Q6_K => pack_q6_k(lane, from, weights, scales),
    }
}

fn spread<const SIZE: usize>(lane: usize, from: &[u8], weights: &mut [u8]) {
    for (element, line) in from.chunks_exact(SIZE).zip(weights.chunks_exact_mut(SIZE * LANES)) {
        line[lane * SIZE..][..SIZE].copy_from_slice(element);
    }
}
