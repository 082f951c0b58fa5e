//! The same with AVX-512. A half of 32 lanes is two registers of states: lanes 0 to 15 and 16 to 31.

use super::columns::column_stride;
use super::rans::{RANS_BITS, RANS_LANES, RansTable, SLACK, SLOT_MASK, STATE_MIN};
use std::arch::x86_64::*;

/// Lanes of a half, whose slots and symbols fill a register of 16-bit words.
const HALF: usize = 32;
const HALVES: usize = RANS_LANES / HALF;

type States = [[__m512i; 2]; HALVES];

/// The index of every other word of two registers: the low halves of 32 states.
const LOW_WORDS: [u16; HALF] = {
    let mut index = [0; HALF];
    let mut i = 0;
    while i < HALF {
        index[i] = 2 * i as u16;
        i += 1;
    }
    index
};

const LANE_NUMBERS: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_words(from: &[u16; 32]) -> __m512i {
    // SAFETY: 64 bytes behind the reference.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_lanes(from: &[u32; 16]) -> __m512i {
    // SAFETY: 64 bytes behind the reference.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_inverses(from: &[f32; 32]) -> [__m512; 2] {
    // SAFETY: 128 bytes behind the reference.
    unsafe { [_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(16))] }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn load_states(from: &[u32; RANS_LANES]) -> States {
    let (lines, _) = from.as_chunks();
    let mut all = [[_mm512_setzero_si512(); 2]; HALVES];
    for (state, line) in all.as_flattened_mut().iter_mut().zip(lines) {
        *state = load_lanes(line);
    }
    all
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn store_states(states: States, to: &mut [u32; RANS_LANES]) {
    for (state, line) in states.as_flattened().iter().zip(to.as_chunks_mut::<16>().0) {
        // SAFETY: 64 bytes behind the reference.
        unsafe { _mm512_storeu_si512(line.as_mut_ptr().cast(), *state) };
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

/// One symbol of each of the first `active` lanes of a half, as 16-bit words; takes words from `at` on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn decode_half(
    (starts, freqs, depth): (__m512i, __m512i, u32),
    states: &mut [__m512i; 2],
    active: u32,
    words: &[u8],
    at: &mut usize,
) -> __m512i {
    let slot_mask = _mm512_set1_epi16(SLOT_MASK as i16);
    let least = _mm512_set1_epi32(STATE_MIN as i32);
    let low = _mm512_permutex2var_epi16(states[0], load_words(&LOW_WORDS), states[1]);
    let slots = _mm512_and_si512(low, slot_mask);
    let mut found = _mm512_setzero_si512();
    for bit in (0..depth).rev() {
        let next = _mm512_add_epi16(found, _mm512_set1_epi16(1 << bit));
        let reached = _mm512_cmple_epu16_mask(_mm512_permutexvar_epi16(next, starts), slots);
        found = _mm512_mask_mov_epi16(found, reached, next);
    }
    let freq = widen(_mm512_permutexvar_epi16(found, freqs));
    let bias = widen(_mm512_sub_epi16(slots, _mm512_permutexvar_epi16(found, starts)));
    for quarter in 0..2 {
        let lanes = (active >> (16 * quarter)) as u16;
        let product = _mm512_mullo_epi32(freq[quarter], _mm512_srli_epi32::<RANS_BITS>(states[quarter]));
        let state = _mm512_mask_add_epi32(states[quarter], lanes, product, bias[quarter]);
        let wants = _mm512_mask_cmplt_epu32_mask(lanes, state, least);
        // SAFETY: the caller has seen to a word of each lane from `at` on, and a quarter takes at most 16.
        let next = unsafe { _mm256_loadu_si256(words.as_ptr().add(*at).cast()) };
        let spread = _mm512_maskz_expand_epi32(wants, _mm512_cvtepu16_epi32(next));
        let shifted = _mm512_slli_epi32::<16>(state);
        states[quarter] = _mm512_mask_or_epi32(state, wants, shifted, spread);
        *at += 2 * wants.count_ones() as usize;
    }
    found
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
    let mut x = load_states(states);
    let mut at = 0;
    for (table, row) in tables.iter().zip(symbols.chunks_exact_mut(column_stride(tokens))) {
        let registers = (load_words(&table.starts), load_words(&table.freqs), table.depth);
        for group in row[..tokens].chunks_mut(RANS_LANES) {
            if at + 4 * RANS_LANES > words.len() {
                return None;
            }
            for (group, states) in group.chunks_mut(HALF).zip(&mut x) {
                let found = decode_half(registers, states, lanes(group.len()), words, &mut at);
                let bytes = _mm512_cvtepi16_epi8(found);
                match <&mut [u8; HALF]>::try_from(&mut *group) {
                    // SAFETY: 32 bytes behind the reference.
                    Ok(group) => unsafe { _mm256_storeu_si256(group.as_mut_ptr().cast(), bytes) },
                    Err(_) => {
                        let mut all = [0; HALF];
                        // SAFETY: 32 bytes behind the reference.
                        unsafe { _mm256_storeu_si256(all.as_mut_ptr().cast(), bytes) };
                        group.copy_from_slice(&all[..group.len()]);
                    }
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

/// Codes one symbol of each of the first lanes of a half; writes words backwards from `at`. False when a symbol is unknown. A quotient is
/// guessed in f32, within one of the true one, and put right by its remainder.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn encode_half(
    (starts, freqs, inverses): (__m512i, __m512i, [__m512; 2]),
    states: &mut [__m512i; 2],
    group: &[u8],
    words: &mut [u8],
    at: &mut usize,
) -> bool {
    let one = _mm512_set1_epi32(1);
    let active = lanes(group.len());
    let mut all = [0; HALF];
    let group = match <&[u8; HALF]>::try_from(group) {
        Ok(group) => group,
        Err(_) => {
            all[..group.len()].copy_from_slice(group);
            &all
        }
    };
    // SAFETY: 32 bytes behind the reference.
    let symbols = _mm512_cvtepu8_epi16(unsafe { _mm256_loadu_si256(group.as_ptr().cast()) });
    let freq_words = _mm512_permutexvar_epi16(symbols, freqs);
    let beyond = _mm512_cmpge_epu16_mask(symbols, _mm512_set1_epi16(32));
    if active & (beyond | _mm512_testn_epi16_mask(freq_words, freq_words)) != 0 {
        return false;
    }
    let index = widen(symbols);
    let (freq, start) = (widen(freq_words), widen(_mm512_permutexvar_epi16(symbols, starts)));
    for quarter in [1, 0] {
        let lanes = (active >> (16 * quarter)) as u16;
        let (state, freq) = (states[quarter], freq[quarter]);
        let inverse = _mm512_permutex2var_ps(inverses[0], index[quarter], inverses[1]);
        let top = _mm512_srli_epi32::<{ 32 - RANS_BITS }>(state);
        let full = _mm512_mask_cmpge_epu32_mask(lanes, top, freq);
        let count = full.count_ones();
        // The words given off go to the end of a vector, whose other words later ones overwrite.
        let rotated = _mm512_add_epi32(load_lanes(&LANE_NUMBERS), _mm512_set1_epi32(count as i32));
        let given = _mm512_permutexvar_epi32(rotated, _mm512_maskz_compress_epi32(full, state));
        // SAFETY: the 32 bytes before `at` are inside `words`: at most two bytes were given off for each symbol, for all of which there is
        // room behind `SLACK`.
        unsafe { _mm256_storeu_si256(words.as_mut_ptr().add(*at - 32).cast(), _mm512_cvtepi32_epi16(given)) };
        *at -= 2 * count as usize;
        let state = _mm512_mask_srli_epi32::<16>(state, full, state);
        let quotient = _mm512_cvttps_epu32(_mm512_mul_ps(_mm512_cvtepu32_ps(state), inverse));
        let rest = _mm512_sub_epi32(state, _mm512_mullo_epi32(quotient, freq));
        let high = _mm512_movepi32_mask(rest);
        let quotient = _mm512_mask_sub_epi32(quotient, high, quotient, one);
        let rest = _mm512_mask_add_epi32(rest, high, rest, freq);
        let low = _mm512_cmpge_epu32_mask(rest, freq);
        let quotient = _mm512_mask_add_epi32(quotient, low, quotient, one);
        let rest = _mm512_mask_sub_epi32(rest, low, rest, freq);
        let base = _mm512_add_epi32(_mm512_slli_epi32::<RANS_BITS>(quotient), rest);
        states[quarter] = _mm512_mask_add_epi32(states[quarter], lanes, base, start[quarter]);
    }
    true
}

/// As the portable one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn encode(
    tables: &[RansTable],
    tokens: usize,
    symbols: &[u8],
    states: &mut [u32; RANS_LANES],
    words: &mut [u8],
) -> Option<usize> {
    let mut x = load_states(states);
    let mut at = words.len();
    assert!(
        at >= SLACK + 2 * tables.len() * tokens,
        "room for a word of each symbol"
    );
    for (table, row) in tables.iter().zip(symbols.chunks_exact(column_stride(tokens))).rev() {
        let registers = (
            load_words(&table.starts),
            load_words(&table.freqs),
            load_inverses(&table.inverses),
        );
        for group in row[..tokens].chunks(RANS_LANES).rev() {
            for (group, states) in group.chunks(HALF).zip(&mut x).rev() {
                if !encode_half(registers, states, group, words, &mut at) {
                    return None;
                }
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
