//! KV elements from one number format to another.

use crate::isa::{Isa, Kernel};
use crate::kv_pool::KvDtype;
use crate::place::Widen;
use crate::rope::Narrow;
use crate::simd::Simd;

/// Elements converted at a time: their f32 form stays in the first-level cache.
const CHUNK: usize = 1024;

/// Appends `data` to `out` in another format. To a wider format every value is kept; to f16 or bf16 it is rounded to the nearest, ties to even
/// (and f16 overflows to infinity), exactly as [`crate::rotate_and_store`] rounds what it computes.
pub fn convert(isa: Isa, from: KvDtype, data: &[u8], to: KvDtype, out: &mut Vec<u8>) {
    if from == to {
        out.extend_from_slice(data);
        return;
    }
    let begin = out.len();
    let elements = data.len() / from.byte_size();
    out.resize(begin + elements * to.byte_size(), 0);
    let chunks = data.chunks(CHUNK * from.byte_size());
    for (data, out) in chunks.zip(out[begin..].chunks_mut(CHUNK * to.byte_size())) {
        isa.run(Convert { from, data, to, out });
    }
}

struct Convert<'a> {
    from: KvDtype,
    data: &'a [u8],
    to: KvDtype,
    out: &'a mut [u8],
}

impl Kernel for Convert<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut wide = [0.0; CHUNK];
        let wide = &mut wide[..self.data.len() / self.from.byte_size()];
        let widen = Widen {
            dtype: self.from,
            from: self.data,
            to: wide,
        };
        widen.run(s);
        let narrow = Narrow {
            dtype: self.to,
            from: wide,
            to: self.out,
        };
        narrow.run(s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    const DTYPES: [KvDtype; 3] = [KvDtype::F32, KvDtype::F16, KvDtype::Bf16];

    fn converted(isa: Isa, from: KvDtype, data: &[u8], to: KvDtype) -> Vec<u8> {
        let mut out = vec![7];
        convert(isa, from, data, to, &mut out);
        assert_eq!(out.remove(0), 7, "it appends");
        out
    }

    #[test]
    fn every_narrow_number_survives_widening_and_back() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for isa in Isa::available() {
            for dtype in [KvDtype::F16, KvDtype::Bf16] {
                let wide = converted(isa, dtype, &all, KvDtype::F32);
                for (bits, wide) in (0..=u16::MAX).zip(wide.as_chunks::<4>().0) {
                    let expected = match dtype {
                        KvDtype::F16 => f16::from_bits(bits).to_f32(),
                        _ => bf16::from_bits(bits).to_f32(),
                    };
                    let wide = f32::from_le_bytes(*wide);
                    assert!(wide.to_bits() == expected.to_bits() || wide.is_nan() && expected.is_nan());
                }
                let back = converted(isa, KvDtype::F32, &wide, dtype);
                for (back, bits) in back.as_chunks::<2>().0.iter().zip(0..=u16::MAX) {
                    let is_nan = match dtype {
                        KvDtype::F16 => f16::from_bits(bits).is_nan(),
                        _ => bf16::from_bits(bits).is_nan(),
                    };
                    assert!(is_nan || u16::from_le_bytes(*back) == bits, "{dtype:?} {bits:04x}");
                }
            }
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_and_ties_go_to_even() {
        // One and a half steps of bf16 above 1, one half, just over one half; then more elements than one chunk holds.
        let ulp = f32::from_bits(0x3f81_0000) - 1.0;
        let mut values = vec![1.0 + 1.5 * ulp, 1.0 + 0.5 * ulp, 1.0 + 0.500_01 * ulp, -70_000.0];
        values.extend((0..3000).map(|i| (i as f32 * 0.37).sin() * 9.0));
        let data: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        for isa in Isa::available() {
            let narrow = converted(isa, KvDtype::F32, &data, KvDtype::Bf16);
            assert_eq!(narrow[..6], [0x82, 0x3f, 0x80, 0x3f, 0x81, 0x3f]);
            let expected: Vec<u8> = values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
            assert_eq!(narrow, expected);
            let half = converted(isa, KvDtype::F32, &data, KvDtype::F16);
            let expected: Vec<u8> = values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
            assert_eq!(half, expected);
        }
    }

    #[test]
    fn equal_formats_copy() {
        for dtype in DTYPES {
            let data: Vec<u8> = (0..=255).collect();
            assert_eq!(converted(Isa::detect(), dtype, &data, dtype), data);
        }
    }
}
