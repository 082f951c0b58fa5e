//! The same with AVX-512: lanes 0 to 15 in one register, 16 to 31 in another.

use super::rans::{RANS_BITS, RANS_LANES, RansTable, SLOT_MASK, STATE_MIN};
use std::arch::x86_64::*;

/// Words that the low halves of 32 states of 32 bits are, over two registers.
const LOW_WORDS: [u16; 32] = {
    let mut index = [0; 32];
    let mut i = 0;
    while i < 32 {
        index[i] = 2 * i as u16;
        i += 1;
    }
    index
};

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_words(from: &[u16; 32]) -> __m512i {
    // SAFETY: 64 bytes behind the reference.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_states(from: &[u32; RANS_LANES]) -> [__m512i; 2] {
    // SAFETY: 128 bytes behind the reference.
    unsafe {
        [
            _mm512_loadu_si512(from.as_ptr().cast()),
            _mm512_loadu_si512(from.as_ptr().add(16).cast()),
        ]
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn store_states(states: [__m512i; 2], to: &mut [u32; RANS_LANES]) {
    // SAFETY: 128 bytes behind the reference.
    unsafe {
        _mm512_storeu_si512(to.as_mut_ptr().cast(), states[0]);
        _mm512_storeu_si512(to.as_mut_ptr().add(16).cast(), states[1]);
    }
}

/// 16-bit lanes 0 to 15 and 16 to 31, each widened.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn widen(words: __m512i) -> [__m512i; 2] {
    [
        _mm512_cvtepu16_epi32(_mm512_castsi512_si256(words)),
        _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64::<1>(words)),
    ]
}

/// As the portable one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn decode(
    tables: &[RansTable],
    tokens: usize,
    words: &[u8],
    word_bytes: usize,
    states: &mut [u32; RANS_LANES],
    symbols: &mut [u8],
) -> Option<usize> {
    let low_words = load_words(&LOW_WORDS);
    let slot_mask = _mm512_set1_epi16(SLOT_MASK as i16);
    let least = _mm512_set1_epi32(STATE_MIN as i32);
    let mut x = load_states(states);
    let mut at = 0;
    for (table, row) in tables.iter().zip(symbols.chunks_exact_mut(tokens)) {
        let (starts, freqs) = (load_words(&table.starts), load_words(&table.freqs));
        for group in row.chunks_mut(RANS_LANES) {
            let slots = _mm512_and_si512(_mm512_permutex2var_epi16(x[0], low_words, x[1]), slot_mask);
            let mut found = _mm512_setzero_si512();
            for bit in (0..table.depth).rev() {
                let step = _mm512_set1_epi16(1 << bit);
                let next = _mm512_add_epi16(found, step);
                let reached = _mm512_cmple_epu16_mask(_mm512_permutexvar_epi16(next, starts), slots);
                found = _mm512_mask_mov_epi16(found, reached, next);
            }
            let freq = widen(_mm512_permutexvar_epi16(found, freqs));
            let bias = widen(_mm512_sub_epi16(slots, _mm512_permutexvar_epi16(found, starts)));
            let active = lanes(group.len());
            if at + 4 * RANS_LANES > words.len() {
                return None;
            }
            for half in 0..2 {
                let lanes = (active >> (16 * half)) as u16;
                let product = _mm512_mullo_epi32(freq[half], _mm512_srli_epi32::<RANS_BITS>(x[half]));
                let state = _mm512_mask_add_epi32(x[half], lanes, product, bias[half]);
                let wants = _mm512_mask_cmplt_epu32_mask(lanes, state, least);
                // SAFETY: `at` plus 128 is inside `words`, checked above, and a half takes at most 32 bytes.
                let next = unsafe { _mm256_loadu_si256(words.as_ptr().add(at).cast()) };
                let spread = _mm512_maskz_expand_epi32(wants, _mm512_cvtepu16_epi32(next));
                let shifted = _mm512_slli_epi32::<16>(state);
                x[half] = _mm512_mask_or_epi32(state, wants, shifted, spread);
                at += 2 * wants.count_ones() as usize;
            }
            let bytes = _mm512_cvtepi16_epi8(found);
            match <&mut [u8; RANS_LANES]>::try_from(&mut *group) {
                // SAFETY: 32 bytes behind the reference.
                Ok(group) => unsafe { _mm256_storeu_si256(group.as_mut_ptr().cast(), bytes) },
                Err(_) => {
                    let mut all = [0; RANS_LANES];
                    // SAFETY: 32 bytes behind the reference.
                    unsafe { _mm256_storeu_si256(all.as_mut_ptr().cast(), bytes) };
                    group.copy_from_slice(&all[..group.len()]);
                }
            }
            if at > word_bytes {
                return None;
            }
        }
    }
    store_states(x, states);
    Some(at)
}

/// As the portable one. A quotient is guessed in f32, within one of the true one, and put right by its remainder.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn encode(
    tables: &[RansTable],
    tokens: usize,
    symbols: &[u8],
    states: &mut [u32; RANS_LANES],
    words: &mut [u8],
) -> Option<usize> {
    let one = _mm512_set1_epi32(1);
    let mut x = load_states(states);
    let mut at = 2 * symbols.len();
    assert!(words.len() >= at, "room for a word of each symbol");
    for (table, row) in tables.iter().zip(symbols.chunks_exact(tokens)).rev() {
        let (starts, freqs) = (load_words(&table.starts), load_words(&table.freqs));
        for group in row.chunks(RANS_LANES).rev() {
            let mut all = [0; RANS_LANES];
            all[..group.len()].copy_from_slice(group);
            let active = lanes(group.len());
            // SAFETY: 32 bytes behind the reference.
            let symbols = _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(all.as_ptr().cast()) });
            let freq_words = _mm512_permutexvar_epi16(symbols, freqs);
            let beyond = _mm512_cmpge_epu16_mask(symbols, _mm512_set1_epi16(32));
            if active & (beyond | _mm512_testn_epi16_mask(freq_words, freq_words)) != 0 {
                return None;
            }
            let (freq, start) = (widen(freq_words), widen(_mm512_permutexvar_epi16(symbols, starts)));
            for half in [1, 0] {
                let lanes = (active >> (16 * half)) as u16;
                let (state, freq) = (x[half], freq[half]);
                let top = _mm512_srli_epi32::<{ 32 - RANS_BITS }>(state);
                let full = _mm512_mask_cmpge_epu32_mask(lanes, top, freq);
                let count = full.count_ones();
                at -= 2 * count as usize;
                let given = _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(full, state));
                // SAFETY: the words written are those of the mask, `count` from `at` on, where earlier ones begin after them: each symbol
                // gives at most one, and `words` has room for all.
                unsafe {
                    _mm256_mask_storeu_epi16(words.as_mut_ptr().add(at).cast(), ((1u32 << count) - 1) as u16, given)
                };
                let state = _mm512_mask_srli_epi32::<16>(state, full, state);
                let guess = _mm512_div_ps(_mm512_cvtepu32_ps(state), _mm512_cvtepu32_ps(freq));
                let quotient = _mm512_cvttps_epu32(guess);
                let rest = _mm512_sub_epi32(state, _mm512_mullo_epi32(quotient, freq));
                let high = _mm512_movepi32_mask(rest);
                let quotient = _mm512_mask_sub_epi32(quotient, high, quotient, one);
                let rest = _mm512_mask_add_epi32(rest, high, rest, freq);
                let low = _mm512_cmpge_epu32_mask(rest, freq);
                let quotient = _mm512_mask_add_epi32(quotient, low, quotient, one);
                let rest = _mm512_mask_sub_epi32(rest, low, rest, freq);
                let base = _mm512_add_epi32(_mm512_slli_epi32::<RANS_BITS>(quotient), rest);
                x[half] = _mm512_mask_add_epi32(x[half], lanes, base, start[half]);
            }
        }
    }
    store_states(x, states);
    Some(at)
}

/// One bit for each of the first `count` lanes.
fn lanes(count: usize) -> u32 {
    ((1u64 << count) - 1) as u32
}
