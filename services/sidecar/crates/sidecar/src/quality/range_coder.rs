//! CacheGen's arithmetic coder: 32-bit interval, 16-bit tables, carries counted as pending bits (Witten, Neal & Cleary, CACM 1987).

/// Borders of a table end here.
pub const CUMULATIVE_TOTAL: u32 = 1 << 16;
const HALF: u32 = 1 << 31;
const QUARTER: u32 = 1 << 30;

/// See the module.
pub struct RangeEncoder {
    low: u32,
    high: u32,
    pending: u32,
    bytes: Vec<u8>,
    bit_count: usize,
}

impl Default for RangeEncoder {
    fn default() -> Self {
        Self {
            low: 0,
            high: u32::MAX,
            pending: 0,
            bytes: Vec::new(),
            bit_count: 0,
        }
    }
}

impl RangeEncoder {
    /// Codes the symbol whose part of the table is `begin..end`, not empty.
    pub fn encode(&mut self, begin: u32, end: u32) {
        let span = u64::from(self.high) - u64::from(self.low) + 1;
        self.high = (u64::from(self.low) + ((span * u64::from(end)) >> 16) - 1) as u32;
        self.low = (u64::from(self.low) + ((span * u64::from(begin)) >> 16)) as u32;
        loop {
            if self.high < HALF {
                self.emit(false);
            } else if self.low >= HALF {
                self.emit(true);
            } else if self.low >= QUARTER && self.high < HALF + QUARTER {
                self.pending += 1;
                self.low = self.low << 1 & !HALF;
                self.high = self.high << 1 | HALF | 1;
                continue;
            } else {
                return;
            }
            self.low <<= 1;
            self.high = self.high << 1 | 1;
        }
    }

    /// Ends the stream.
    pub fn finish(mut self) -> Vec<u8> {
        self.pending += 1;
        self.emit(self.low >= QUARTER);
        self.bytes
    }

    fn emit(&mut self, bit: bool) {
        self.push(bit);
        for _ in 0..std::mem::take(&mut self.pending) {
            self.push(!bit);
        }
    }

    fn push(&mut self, bit: bool) {
        if self.bit_count.is_multiple_of(8) {
            self.bytes.push(0);
        }
        if let Some(last) = self.bytes.last_mut().filter(|_| bit) {
            *last |= 0x80 >> (self.bit_count % 8);
        }
        self.bit_count += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes with the same table throughout.
    fn decode(bytes: &[u8], borders: &[u32], count: usize) -> Vec<usize> {
        let bit = |at: usize| u32::from(bytes.get(at / 8).is_some_and(|byte| byte & 0x80 >> (at % 8) != 0));
        let (mut low, mut high, mut at) = (0_u32, u32::MAX, 32);
        let mut value = (0..32).fold(0, |value, at| value << 1 | bit(at));
        let mut symbols = Vec::new();
        for _ in 0..count {
            let span = u64::from(high) - u64::from(low) + 1;
            let place = (((u64::from(value - low) + 1) << 16) - 1) / span;
            let symbol = borders.partition_point(|border| u64::from(*border) <= place) - 1;
            symbols.push(symbol);
            high = (u64::from(low) + ((span * u64::from(borders[symbol + 1])) >> 16) - 1) as u32;
            low = (u64::from(low) + ((span * u64::from(borders[symbol])) >> 16)) as u32;
            loop {
                if low < HALF && high >= HALF {
                    if low < QUARTER || high >= HALF + QUARTER {
                        break;
                    }
                    (low, high, value) = (low - QUARTER, high - QUARTER, value - QUARTER);
                }
                (low, high) = (low << 1, high << 1 | 1);
                value = value << 1 | bit(at);
                at += 1;
            }
        }
        symbols
    }

    #[test]
    fn streams_are_read_back_and_take_their_entropy() {
        let borders = [0, 32_768, 49_152, 65_535, 65_536];
        let symbols: Vec<usize> = (0..3000_usize)
            .map(|i| [0, 0, 1, 2, 0, 0, 2, 1][i * i % 8])
            .chain([3])
            .collect();
        let mut encoder = RangeEncoder::default();
        symbols
            .iter()
            .for_each(|symbol| encoder.encode(borders[*symbol], borders[symbol + 1]));
        let bytes = encoder.finish();
        assert_eq!(decode(&bytes, &borders, symbols.len()), symbols);
        let bits = |symbol: &usize| 16.0 - f64::from(borders[symbol + 1] - borders[*symbol]).log2();
        let entropy: f64 = symbols.iter().map(bits).sum();
        assert!(
            (bytes.len() as f64 * 8.0 - entropy).abs() < 16.0,
            "{} {entropy}",
            bytes.len() * 8
        );
    }
}
