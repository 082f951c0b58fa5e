//! What is read from rows of logits, and how the CPU does it.

use crate::plan::{PromptLogprob, SampledToken, SamplingParams};
use crate::sampling::{Past, SamplingScratch, prompt_logprob, sample};
use kvasir_kernels::Cpu;

/// What is wanted of one row of logits.
#[derive(Clone, Copy)]
pub enum Reading<'a> {
    /// A token, the one with this index among the generated ones.
    Sample {
        /// How to choose.
        params: &'a SamplingParams,
        /// What came before.
        past: Past<'a>,
        /// Counted from 0.
        index: u64,
    },
    /// How likely this token of the prompt was.
    Prompt {
        /// The prompt's token.
        token: u32,
        /// So many of the most likely ones beside it.
        top: u32,
    },
    /// Nothing any more.
    Nothing,
}

/// The answer to a [`Reading`].
#[derive(Debug, Clone, PartialEq)]
pub enum Read {
    /// To `Sample`.
    Token(SampledToken),
    /// To `Prompt`.
    Prompt(PromptLogprob),
    /// To `Nothing`.
    Nothing,
}

/// Reads `[readings, vocab]` logits.
pub fn read_logits(cpu: &Cpu, logits: &[f32], vocab: usize, readings: &[Reading<'_>]) -> Vec<Read> {
    let mut reads = vec![Read::Nothing; readings.len()];
    cpu.threads.for_each(&mut reads, |i, read| {
        let row = &logits[i * vocab..(i + 1) * vocab];
        let scratch = &mut SamplingScratch::default();
        *read = match readings[i] {
            Reading::Sample { params, past, index } => Read::Token(sample(cpu.isa, row, params, past, index, scratch)),
            Reading::Prompt { token, top } => Read::Prompt(prompt_logprob(cpu.isa, row, token, top, scratch)),
            Reading::Nothing => Read::Nothing,
        };
    });
    reads
}
