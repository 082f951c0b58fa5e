//! Entropy coding of small symbols with static tables: range asymmetric numeral systems, 64 states side by side.
//!
//! Source: Duda, "Asymmetric numeral systems", 2013; interleaving after Giesen, "Interleaved entropy coders", 2014. A row of symbols shares
//! one table of at most 32 entries, so that a table lies in two registers: the symbol of a slot is found by binary search over the starts,
//! without memory. Lane `i` codes the symbols at `64 j + i` of every row: 64, because a step waits for the one before it, and two halves of 32
//! fill each other's waits. States are 32 bits wide in `[2^16, 2^32)` and give off 16 bits at a
//! time, at most once a symbol.
//!
//! ```text
//! stream = [min(64, tokens)] states, u32 little endian, then words of 16 bits, little endian, in the order in which decoding takes them:
//!          row by row, 64 tokens at a time, lane by lane
//! ```

use super::columns::column_stride;
use crate::isa::Isa;

/// Symbols that are coded side by side.
pub const RANS_LANES: usize = 64;
/// Most symbols of a table.
pub const RANS_SYMBOLS_MAX: usize = 32;
/// Frequencies of a table add up to 2 to this power.
pub const RANS_BITS: u32 = 15;

/// Smallest state; also what encoding starts from, and so where decoding has to end.
pub(super) const STATE_MIN: u32 = 1 << 16;
const TOTAL: u32 = 1 << RANS_BITS;
pub(super) const SLOT_MASK: u32 = TOTAL - 1;

/// How probable each symbol of a row is.
#[derive(Debug, Clone, PartialEq)]
#[repr(align(64))]
pub struct RansTable {
    /// First slot of each symbol; beyond the last symbol, a slot that does not exist.
    pub(super) starts: [u16; RANS_SYMBOLS_MAX],
    pub(super) freqs: [u16; RANS_SYMBOLS_MAX],
    /// 1 over each frequency, for guesses at quotients.
    pub(super) inverses: [f32; RANS_SYMBOLS_MAX],
    /// Steps of the binary search: 2 to this power is at least the number of symbols.
    pub(super) depth: u32,
}

/// Why coding stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RansError {
    /// No table.
    #[error(
        "frequencies of {symbols} symbols add up to {total}; 1 to 32 symbols, each at least 1, must add up to 32768"
    )]
    Frequencies {
        /// How many were given.
        symbols: usize,
        /// Their sum.
        total: u32,
    },
    /// The symbols are not whole rows.
    #[error("{symbols} symbols for {rows} rows of {tokens} tokens")]
    Shape {
        /// Symbols given.
        symbols: usize,
        /// Tables given.
        rows: usize,
        /// Tokens of a row.
        tokens: usize,
    },
    /// A symbol that its row's table does not have.
    #[error("a symbol is not in its row's table")]
    UnknownSymbol,
    /// The stream ends too early, too late or in the wrong state.
    #[error("the stream of {bytes} bytes is damaged")]
    Damaged {
        /// Its length.
        bytes: usize,
    },
}

impl RansTable {
    /// A table of symbols `0..freqs.len()`.
    ///
    /// # Errors
    /// [`RansError::Frequencies`].
    pub fn new(freqs: &[u16]) -> Result<Self, RansError> {
        let total: u32 = freqs.iter().map(|freq| u32::from(*freq)).sum();
        let symbols = freqs.len();
        if symbols == 0 || symbols > RANS_SYMBOLS_MAX || freqs.contains(&0) || total != TOTAL {
            return Err(RansError::Frequencies { symbols, total });
        }
        let mut table = Self {
            starts: [TOTAL as u16; RANS_SYMBOLS_MAX],
            freqs: [0; RANS_SYMBOLS_MAX],
            inverses: [0.0; RANS_SYMBOLS_MAX],
            depth: symbols.next_power_of_two().trailing_zeros(),
        };
        let mut start = 0;
        for (symbol, freq) in freqs.iter().enumerate() {
            table.starts[symbol] = start;
            table.freqs[symbol] = *freq;
            table.inverses[symbol] = 1.0 / f32::from(*freq);
            start = start.wrapping_add(*freq);
        }
        Ok(table)
    }

    /// Number of symbols.
    pub fn symbol_count(&self) -> usize {
        self.freqs.iter().take_while(|freq| **freq > 0).count()
    }

    /// Frequencies of the symbols.
    pub fn freqs(&self) -> &[u16] {
        &self.freqs[..self.symbol_count()]
    }
}

/// Appends the stream of `symbols`, `[tables][stride]`, to `out`; the stride is `tokens` rounded up to 16, and what lies beyond the tokens is
/// not coded. `scratch` is for the encoder's own use between calls.
///
/// # Errors
/// [`RansError::Shape`], [`RansError::UnknownSymbol`]; `out` is then unchanged.
pub fn rans_encode(
    isa: Isa,
    tables: &[RansTable],
    tokens: usize,
    symbols: &[u8],
    scratch: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<(), RansError> {
    check_shape(tables, tokens, symbols.len())?;
    let room = SLACK + 2 * tables.len() * tokens;
    scratch.resize(room, 0);
    let mut states = [STATE_MIN; RANS_LANES];
    let begin = match isa.has_avx512() {
        // SAFETY: the instruction set says that the processor has the features.
        #[cfg(target_arch = "x86_64")]
        true => unsafe { super::rans_avx512::encode(tables, tokens, symbols, &mut states, scratch) },
        _ => encode_portable(tables, tokens, symbols, &mut states, scratch),
    }
    .ok_or(RansError::UnknownSymbol)?;
    out.extend(
        states[..tokens.min(RANS_LANES)]
            .iter()
            .flat_map(|state| state.to_le_bytes()),
    );
    out.extend_from_slice(&scratch[begin..room]);
    Ok(())
}

/// Fills `symbols`, `[tables][stride]`, from a stream that [`rans_encode`] made with the same tables. A damaged stream gives an error or other
/// symbols of the tables, and nothing worse.
///
/// # Errors
/// [`RansError::Shape`], [`RansError::Damaged`].
pub fn rans_decode(
    isa: Isa,
    tables: &[RansTable],
    tokens: usize,
    stream: &[u8],
    scratch: &mut Vec<u8>,
    symbols: &mut [u8],
) -> Result<(), RansError> {
    check_shape(tables, tokens, symbols.len())?;
    let damaged = RansError::Damaged { bytes: stream.len() };
    let lanes = tokens.min(RANS_LANES);
    let (head, words) = stream.split_at_checked(4 * lanes).ok_or(damaged)?;
    let mut states = [STATE_MIN; RANS_LANES];
    for (state, bytes) in states.iter_mut().zip(head.as_chunks::<4>().0) {
        *state = u32::from_le_bytes(*bytes);
    }
    // A step reads at most a word of each lane beyond where it stands, whatever it takes of them.
    scratch.clear();
    scratch.extend_from_slice(words);
    scratch.extend_from_slice(&[0; 4 * RANS_LANES]);
    let end = match isa.has_avx512() {
        // SAFETY: the instruction set says that the processor has the features.
        #[cfg(target_arch = "x86_64")]
        true => unsafe { super::rans_avx512::decode(tables, tokens, scratch, words.len(), &mut states, symbols) },
        _ => decode_portable(tables, tokens, scratch, words.len(), &mut states, symbols),
    };
    if end != Some(words.len()) || states.iter().any(|state| *state != STATE_MIN) {
        return Err(damaged);
    }
    Ok(())
}

fn check_shape(tables: &[RansTable], tokens: usize, symbols: usize) -> Result<(), RansError> {
    let rows = tables.len();
    if tokens == 0 || rows.checked_mul(column_stride(tokens)) != Some(symbols) {
        return Err(RansError::Shape { symbols, rows, tokens });
    }
    Ok(())
}

/// Bytes in front of the words, which writing them in whole vectors may touch.
pub(super) const SLACK: usize = 64;

/// Writes words backwards from the end of `words`; returns where they begin, nothing when a symbol is unknown.
fn encode_portable(
    tables: &[RansTable],
    tokens: usize,
    symbols: &[u8],
    states: &mut [u32; RANS_LANES],
    words: &mut [u8],
) -> Option<usize> {
    let mut at = words.len();
    for (table, row) in tables.iter().zip(symbols.chunks_exact(column_stride(tokens))).rev() {
        for group in row[..tokens].chunks(RANS_LANES).rev() {
            for (state, symbol) in states.iter_mut().zip(group).rev() {
                let symbol = usize::from(*symbol);
                let freq = u32::from(*table.freqs.get(symbol)?);
                if freq == 0 {
                    return None;
                }
                if *state >> (32 - RANS_BITS) >= freq {
                    at -= 2;
                    words[at..at + 2].copy_from_slice(&(*state as u16).to_le_bytes());
                    *state >>= 16;
                }
                *state = ((*state / freq) << RANS_BITS) + *state % freq + u32::from(table.starts[symbol]);
            }
        }
    }
    Some(at)
}

/// Returns where reading ended; nothing when the words ran out.
fn decode_portable(
    tables: &[RansTable],
    tokens: usize,
    words: &[u8],
    word_bytes: usize,
    states: &mut [u32; RANS_LANES],
    symbols: &mut [u8],
) -> Option<usize> {
    let mut at = 0;
    for (table, row) in tables.iter().zip(symbols.chunks_exact_mut(column_stride(tokens))) {
        for group in row[..tokens].chunks_mut(RANS_LANES) {
            for (state, symbol) in states.iter_mut().zip(group) {
                let slot = (*state & SLOT_MASK) as u16;
                let mut found = 0;
                for step in (0..table.depth).rev().map(|bit| 1 << bit) {
                    if table.starts[found + step] <= slot {
                        found += step;
                    }
                }
                *symbol = found as u8;
                let (freq, start) = (u32::from(table.freqs[found]), u32::from(table.starts[found]));
                // Wraps only for states that no encoder makes.
                *state = freq
                    .wrapping_mul(*state >> RANS_BITS)
                    .wrapping_add(u32::from(slot) - start);
                if *state < STATE_MIN {
                    let word = u16::from_le_bytes([words[at], words[at + 1]]);
                    *state = *state << 16 | u32::from(word);
                    at += 2;
                }
            }
            if at > word_bytes {
                return None;
            }
        }
    }
    Some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(weights: &[u32]) -> RansTable {
        let total: u32 = weights.iter().sum();
        let spare = TOTAL - weights.len() as u32;
        let mut freqs: Vec<u16> = weights
            .iter()
            .map(|w| (1 + u64::from(spare) * u64::from(*w) / u64::from(total)) as u16)
            .collect();
        let rest = TOTAL - freqs.iter().map(|freq| u32::from(*freq)).sum::<u32>();
        freqs[0] += rest as u16;
        RansTable::new(&freqs).unwrap()
    }

    fn streams(tables: &[RansTable], tokens: usize, symbols: &[u8]) -> Vec<u8> {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for isa in Isa::available() {
            let (mut scratch, mut stream) = (Vec::new(), Vec::new());
            rans_encode(isa, tables, tokens, symbols, &mut scratch, &mut stream).unwrap();
            all.push(stream);
        }
        assert!(all.iter().all(|stream| *stream == all[0]), "instruction sets disagree");
        all.swap_remove(0)
    }

    proptest! {
        #[test]
        fn every_instruction_set_writes_the_same_stream_and_reads_it_back(
            weights in prop::collection::vec(prop::collection::vec(1u32..5000, 1..=32), 1..6),
            tokens in 1usize..150,
            seed in any::<u64>(),
            flips in prop::collection::vec((any::<usize>(), 1u8..), 0..4),
        ) {
            let tables: Vec<RansTable> = weights.iter().map(|weights| table(weights)).collect();
            let mut random = seed | 1;
            let symbols: Vec<u8> = tables.iter().flat_map(|table| {
                (0..column_stride(tokens)).map(|_| {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    ((random >> 33) as usize % table.symbol_count()) as u8
                }).collect::<Vec<_>>()
            }).collect();
            let coded = |symbols: &[u8]| -> Vec<Vec<u8>> {
                symbols.chunks_exact(column_stride(tokens)).map(|row| row[..tokens].to_vec()).collect()
            };
            let mut stream = streams(&tables, tokens, &symbols);
            for isa in Isa::available() {
                let (mut scratch, mut back) = (Vec::new(), vec![0; symbols.len()]);
                rans_decode(isa, &tables, tokens, &stream, &mut scratch, &mut back).unwrap();
                prop_assert_eq!(coded(&back), coded(&symbols));
                prop_assert!(rans_decode(isa, &tables, tokens, &stream[..stream.len() - 1], &mut scratch, &mut back).is_err());
            }
            for (at, flip) in &flips {
                let at = at % stream.len();
                stream[at] ^= flip;
            }
            let read: Vec<_> = Isa::available().into_iter().map(|isa| {
                let (mut scratch, mut back) = (Vec::new(), vec![0; symbols.len()]);
                let outcome = rans_decode(isa, &tables, tokens, &stream, &mut scratch, &mut back);
                (outcome, outcome.is_ok().then(|| coded(&back)))
            }).collect();
            prop_assert!(read.iter().all(|one| *one == read[0]));
        }
    }

    #[test]
    fn a_stream_takes_what_its_symbols_are_worth() {
        // Four symbols of probability 1/2, 1/4, 1/8, 1/8: 1.75 bits each, and 64 states of 4 bytes, of which two are worth something.
        let tables = vec![RansTable::new(&[16384, 8192, 4096, 4096]).unwrap(); 64];
        let pattern = [0u8, 0, 0, 0, 1, 1, 2, 3];
        let symbols: Vec<u8> = (0..64 * 256).map(|i| pattern[i % 8]).collect();
        let bits = 8 * streams(&tables, 256, &symbols).len() as i64;
        let expected = 64 * 256 * 7 / 4 + 64 * 16;
        assert!(
            (bits - expected).abs() <= 64 * 17,
            "{bits} bits, expected about {expected}"
        );
    }

    #[test]
    fn what_cannot_be_coded_is_refused() {
        assert!(matches!(
            RansTable::new(&[1, 2]),
            Err(RansError::Frequencies { symbols: 2, total: 3 })
        ));
        assert!(
            RansTable::new(&[32768, 0]).is_err()
                && RansTable::new(&[1024; 33]).is_err()
                && RansTable::new(&[]).is_err()
        );
        let tables = [RansTable::new(&[16384, 16384]).unwrap()];
        let row = |symbols: &[u8; 3]| {
            let mut row = [0; 16];
            row[..3].copy_from_slice(symbols);
            row
        };
        for isa in Isa::available() {
            let (mut scratch, mut out) = (Vec::new(), Vec::new());
            assert_eq!(
                rans_encode(isa, &tables, 3, &row(&[0, 1, 2]), &mut scratch, &mut out),
                Err(RansError::UnknownSymbol)
            );
            assert_eq!(
                rans_encode(isa, &tables, 3, &row(&[0, 1, 200]), &mut scratch, &mut out),
                Err(RansError::UnknownSymbol)
            );
            assert!(matches!(
                rans_encode(isa, &tables, 3, &[0, 1], &mut scratch, &mut out),
                Err(RansError::Shape { .. })
            ));
            assert!(out.is_empty());
        }
    }
}
