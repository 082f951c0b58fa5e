//! Bytes of few bits each, packed: numbers that are too evenly spread for entropy coding to gain anything.
//!
//! ```text
//! packed  [bits][ceil(count / 8)]: bit `i` of byte `j` of plane `b` is bit `b` of number `8 j + i`
//! ```

const ONES: u64 = 0x0101_0101_0101_0101;

/// Bytes that `count` numbers of `bits` bits take.
pub fn packed_bits_len(bits: u32, count: usize) -> usize {
    bits as usize * count.div_ceil(8)
}

/// Appends the low `bits` bits of each number to `out`.
pub fn pack_bits(bits: u32, numbers: &[u8], out: &mut Vec<u8>) {
    let (whole, rest) = numbers.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    for bit in 0..bits {
        // Each byte's bit lands at its own place of the topmost byte; no two products meet.
        let gather = |eight: &[u8; 8]| {
            ((u64::from_le_bytes(*eight) >> bit & ONES).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8
        };
        out.extend(whole.iter().map(gather));
        if !rest.is_empty() {
            out.push(gather(&last));
        }
    }
}

/// The bits of each byte, one in each byte of a word.
const SPREAD: [u64; 256] = {
    let mut all = [0; 256];
    let mut at = 0;
    while at < 256 * 8 {
        let (byte, bit) = (at / 8, at % 8);
        all[byte] |= ((byte as u64 >> bit) & 1) << (8 * bit);
        at += 1;
    }
    all
};

/// Fills `numbers` from `packed`, which [`pack_bits`] wrote for as many: whose length is [`packed_bits_len`].
pub fn unpack_bits(bits: u32, packed: &[u8], numbers: &mut [u8]) {
    numbers.fill(0);
    let plane_bytes = numbers.len().div_ceil(8).max(1);
    for (bit, plane) in packed.chunks_exact(plane_bytes).take(bits as usize).enumerate() {
        let (whole, rest) = numbers.as_chunks_mut::<8>();
        for (eight, byte) in whole.iter_mut().zip(plane) {
            *eight = (u64::from_le_bytes(*eight) | SPREAD[usize::from(*byte)] << bit).to_le_bytes();
        }
        if let Some(byte) = plane.get(whole.len()) {
            let bits = (SPREAD[usize::from(*byte)] << bit).to_le_bytes();
            rest.iter_mut().zip(bits).for_each(|(number, bits)| *number |= bits);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::tests::Noise;

    #[test]
    fn numbers_come_back_and_take_the_bits_they_have() {
        for (bits, count) in [(1, 1), (1, 16), (3, 37), (5, 256), (2, 8), (0, 9), (8, 21)] {
            let mut noise = Noise::new(u64::from(bits));
            let numbers: Vec<u8> = (0..count).map(|_| (noise.bits() & ((1 << bits) - 1)) as u8).collect();
            let (mut packed, mut back) = (vec![9], vec![0xff; count]);
            pack_bits(bits, &numbers, &mut packed);
            assert_eq!(packed.len(), 1 + packed_bits_len(bits, count));
            unpack_bits(bits, &packed[1..], &mut back);
            assert_eq!(back, numbers, "{bits} bits");
        }
        let mut packed = Vec::new();
        pack_bits(2, &[1, 0, 3, 0, 0, 0, 0, 2, 1], &mut packed);
        assert_eq!(packed, [0b0000_0101, 1, 0b1000_0100, 0]);
    }
}
