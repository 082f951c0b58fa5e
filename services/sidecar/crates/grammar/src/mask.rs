//! The tokens that may come next.

/// Which tokens of a vocabulary continue a text, and whether it may end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mask {
    /// Bit `i % 32` of word `i / 32` is token `i`.
    bits: Vec<u32>,
    complete: bool,
}

impl Mask {
    /// Bit `i % 32` of word `i / 32` allows token `i`; `complete` says that the text may end.
    pub fn new(bits: Vec<u32>, complete: bool) -> Self {
        Self { bits, complete }
    }

    /// Bit `i % 32` of word `i / 32` allows token `i`; beyond the end none is.
    pub fn words(&self) -> &[u32] {
        &self.bits
    }

    /// The tokens allowed.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        let words = (0..).zip(&self.bits);
        words.flat_map(|(word, bits)| {
            (0..32)
                .filter(move |bit| bits >> bit & 1 == 1)
                .map(move |bit| word * 32 + bit)
        })
    }

    /// Whether the text so far matches as it is.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether nothing may follow, not even the end: the grammar was too costly to follow further.
    pub fn is_dead(&self) -> bool {
        !self.complete && self.bits.iter().all(|word| *word == 0)
    }

    /// Puts the logits of tokens that may not come to minus infinity; `end_tokens` may come when the text may end.
    pub fn apply(&self, logits: &mut [f32], end_tokens: &[u32]) {
        let ends: Vec<(usize, f32)> = end_tokens
            .iter()
            .filter(|_| self.complete)
            .filter_map(|token| Some((*token as usize, *logits.get(*token as usize)?)))
            .collect();
        let words = self.bits.iter().copied().chain(std::iter::repeat(0));
        for (chunk, word) in logits.chunks_mut(32).zip(words) {
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        for (token, logit) in ends {
            logits[token] = logit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_allowed_goes_and_ends_come_with_a_complete_text() {
        let mut logits = vec![1.0; 70];
        Mask::new(vec![1 << 3, 0, 1], false).apply(&mut logits, &[69]);
        let left = |logits: &[f32]| (0..70).filter(|i| logits[*i] == 1.0).collect::<Vec<_>>();
        assert_eq!(left(&logits), [3, 64]);
        let mut logits = vec![1.0; 70];
        let mask = Mask::new(vec![1 << 3], true);
        mask.apply(&mut logits, &[69, 1000]);
        assert_eq!(left(&logits), [3, 69]);
        assert_eq!(mask.tokens().collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn dead_is_what_neither_goes_on_nor_ends() {
        assert!(Mask::default().is_dead());
        assert!(!Mask::new(Vec::new(), true).is_dead() && !Mask::new(vec![0, 2], false).is_dead());
    }
}
