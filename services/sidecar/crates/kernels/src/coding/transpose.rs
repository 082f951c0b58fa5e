//! Bytes turned from rows into columns and back.

/// Side of the squares that are turned at once.
const SIDE: usize = 16;

/// Writes byte `column` of row `row` to byte `row` of row `column`. Rows lie `from_stride` and `to_stride` bytes apart; there are `rows` rows of
/// `columns` bytes.
///
/// # Panics
/// When a row lies outside its slice.
pub(super) fn transpose_bytes(
    (from, from_stride): (&[u8], usize),
    (to, to_stride): (&mut [u8], usize),
    rows: usize,
    columns: usize,
) {
    for row in (0..rows).step_by(SIDE) {
        for column in (0..columns).step_by(SIDE) {
            let (height, width) = ((rows - row).min(SIDE), (columns - column).min(SIDE));
            if height == SIDE && width == SIDE {
                let mut square = [[0; SIDE]; SIDE];
                for (i, line) in square.iter_mut().enumerate() {
                    line.copy_from_slice(&from[(row + i) * from_stride + column..][..SIDE]);
                }
                for (i, line) in turned(square).iter().enumerate() {
                    to[(column + i) * to_stride + row..][..SIDE].copy_from_slice(line);
                }
                continue;
            }
            for i in 0..height {
                for j in 0..width {
                    to[(column + j) * to_stride + row + i] = from[(row + i) * from_stride + column + j];
                }
            }
        }
    }
}

/// Four rounds, each of which pairs the upper half of the rows with the lower one, byte by byte.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn turned(square: [[u8; SIDE]; SIDE]) -> [[u8; SIDE]; SIDE] {
    use std::arch::x86_64::{__m128i, _mm_setzero_si128, _mm_unpackhi_epi8, _mm_unpacklo_epi8};
    // SAFETY: 16 bytes are 16 bytes, whatever they are called; SSE2 is part of x86-64.
    unsafe {
        let mut rows: [__m128i; SIDE] = std::mem::transmute(square);
        for _ in 0..4 {
            let mut next = [_mm_setzero_si128(); SIDE];
            for i in 0..SIDE / 2 {
                next[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + SIDE / 2]);
                next[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + SIDE / 2]);
            }
            rows = next;
        }
        std::mem::transmute(rows)
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn turned(square: [[u8; SIDE]; SIDE]) -> [[u8; SIDE]; SIDE] {
    std::array::from_fn(|i| std::array::from_fn(|j| square[j][i]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::Noise;

    #[test]
    fn every_byte_goes_to_its_place_and_no_other() {
        for (rows, columns) in [(16, 16), (64, 32), (37, 50), (1, 20), (17, 3)] {
            let mut noise = Noise::new(rows as u64);
            let (from_stride, to_stride) = (columns + 3, rows + 5);
            let from: Vec<u8> = (0..rows * from_stride).map(|_| noise.bits() as u8).collect();
            let mut to = vec![7; columns * to_stride];
            transpose_bytes((&from, from_stride), (&mut to, to_stride), rows, columns);
            for (column, line) in to.chunks_exact(to_stride).enumerate() {
                for row in 0..rows {
                    assert_eq!(line[row], from[row * from_stride + column]);
                }
                assert_eq!(line[rows..], [7; 5]);
            }
        }
    }
}
