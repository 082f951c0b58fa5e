//! Logits without sequences: for comparisons and measurements.

use super::Engine;
use crate::error::StepError;
use kvasir_kernels::Span;

impl Engine {
    /// Logits after every token, `[tokens, vocab]`, computed in chunks of `chunk` tokens. Uses the pool's first blocks.
    ///
    /// # Errors
    /// As [`Engine::probe`].
    pub fn logits(&mut self, tokens: &[u32], chunk: usize) -> Result<Vec<f32>, StepError> {
        let blocks: Vec<u32> = (0..tokens.len().div_ceil(self.limits.block_size) as u32).collect();
        let mut all = Vec::with_capacity(tokens.len() * self.limits.vocab_size);
        let chunk = chunk.clamp(1, self.backend.rows_max());
        for (index, tokens) in tokens.chunks(chunk).enumerate() {
            let rows: Vec<usize> = (0..tokens.len()).collect();
            all.extend(self.probe(tokens, index * chunk, &blocks, &rows)?);
        }
        Ok(all)
    }

    /// Computes tokens at positions from `start_position` on the KV that lies in the table before them, stores theirs, and returns the
    /// logits after some of them: `rows` ascend and count from the first token; `[rows, vocab]`. The caller owns the blocks.
    ///
    /// # Errors
    /// [`StepError::PoolInUse`] while sequences are known or when the table is too short or names blocks that are not there,
    /// [`StepError::UnknownToken`], [`StepError::ContextExceeded`].
    pub fn probe(
        &mut self,
        tokens: &[u32],
        start_position: usize,
        blocks: &[u32],
        rows: &[usize],
    ) -> Result<Vec<f32>, StepError> {
        self.check_probe(tokens, start_position, blocks)?;
        let mut all = Vec::with_capacity(rows.len() * self.limits.vocab_size);
        let mut begin = 0;
        for tokens in tokens.chunks(self.backend.rows_max()) {
            let end = begin + tokens.len();
            let span = Span {
                start_position: start_position + begin,
                token_count: tokens.len(),
                blocks,
            };
            let inside = rows.iter().filter(|row| (begin..end).contains(*row));
            let rows: Vec<usize> = inside.map(|row| row - begin).collect();
            self.backend
                .forward(tokens, vec![span], &rows, &mut self.logits, &mut |_| {})?;
            all.extend_from_slice(&self.logits);
            begin = end;
        }
        Ok(all)
    }

    fn check_probe(&self, tokens: &[u32], start_position: usize, blocks: &[u32]) -> Result<(), StepError> {
        let limits = self.limits;
        let in_use = |what: String| Err(StepError::PoolInUse(what));
        if !self.sequences.is_empty() {
            return in_use(format!("{} sequences are running", self.sequences.len()));
        }
        let end = start_position + tokens.len();
        let needed = end.div_ceil(limits.block_size);
        if needed > blocks.len() || needed > limits.block_count as usize {
            let (given, exist) = (blocks.len(), limits.block_count);
            return in_use(format!("{needed} blocks needed, {given} given, {exist} exist"));
        }
        if let Some(block) = blocks.iter().find(|block| **block >= limits.block_count) {
            return in_use(format!(
                "block {block} does not exist, the pool has {}",
                limits.block_count
            ));
        }
        if end > limits.context_length {
            let (last_position, context_length) = (end as u64 - 1, limits.context_length);
            return Err(StepError::ContextExceeded {
                sequence_id: 0,
                last_position,
                context_length,
            });
        }
        match tokens.iter().find(|token| **token as usize >= limits.vocab_size) {
            Some(token_id) => Err(StepError::UnknownToken {
                sequence_id: 0,
                token_id: *token_id,
                vocab_size: limits.vocab_size,
            }),
            None => Ok(()),
        }
    }
}
