//! The tokens that penalties and bad words look back on.

use std::collections::HashMap;

/// Prompt and output of one sequence, as far as the engine knows them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct History {
    tokens: Vec<u32>,
    prompt_token_count: usize,
    output_token_count: usize,
    seen: HashMap<u32, u32>,
}

impl History {
    /// Begins with the prompt. Without its tokens (when only output matters) positions count from `prompt_token_count` all the same.
    pub fn new(prompt: &[u32], prompt_token_count: usize) -> Self {
        let mut history = Self {
            tokens: prompt.to_vec(),
            prompt_token_count,
            output_token_count: 0,
            seen: HashMap::new(),
        };
        for token in prompt {
            history.seen.entry(*token).or_default();
        }
        history
    }

    /// Takes the token at `position` into account; what lies in the prompt or is known already changes nothing.
    pub fn push(&mut self, position: usize, token: u32) {
        if position == self.prompt_token_count + self.output_token_count {
            self.output_token_count += 1;
            self.tokens.push(token);
            *self.seen.entry(token).or_default() += 1;
        }
    }

    /// Every token of prompt and output with how often the output has it.
    pub fn seen(&self) -> impl Iterator<Item = (u32, u32)> {
        self.seen.iter().map(|(token, count)| (*token, *count))
    }

    /// How often the output has a token.
    pub fn count(&self, token: u32) -> u32 {
        self.seen.get(&token).copied().unwrap_or(0)
    }

    /// Tokens of the output.
    pub fn output_len(&self) -> usize {
        self.output_token_count
    }

    /// The output from its token `first` on.
    pub fn output_from(&self, first: usize) -> &[u32] {
        let count = self.output_token_count.saturating_sub(first);
        &self.tokens[self.tokens.len() - count..]
    }

    /// Whether the tokens end with these.
    pub fn ends_with(&self, tokens: &[u32]) -> bool {
        self.tokens.ends_with(tokens)
    }

    /// The prompt's token at a position, if the prompt was given.
    pub fn prompt_token(&self, position: usize) -> Option<u32> {
        if position < self.prompt_token_count {
            self.tokens.get(position).copied()
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_counted_once_and_apart_from_the_prompt() {
        let mut history = History::new(&[5, 6], 2);
        history.push(1, 9); // Inside the prompt.
        history.push(2, 5);
        history.push(2, 5); // Known already.
        history.push(3, 7);
        let mut seen: Vec<_> = history.seen().collect();
        seen.sort_unstable();
        assert_eq!(seen, [(5, 1), (6, 0), (7, 1)]);
        assert!(history.ends_with(&[6, 5, 7]) && !history.ends_with(&[5, 6, 7]));
        assert_eq!((history.output_len(), history.output_from(1)), (2, &[7][..]));
        assert_eq!(
            (history.output_from(5), history.count(5), history.count(8)),
            (&[][..], 1, 0)
        );
    }

    #[test]
    fn without_the_prompt_positions_still_count_from_its_end() {
        let mut history = History::new(&[], 100);
        history.push(99, 1);
        history.push(100, 2);
        assert_eq!(history.seen().collect::<Vec<_>>(), [(2, 1)]);
    }
}
