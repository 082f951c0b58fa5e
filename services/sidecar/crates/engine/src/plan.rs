//! What a step is asked to do and what it answers. Mirrors `kvasir.kernel.v1`, without the wire.

use kvasir_grammar::Constraint;
use kvasir_kernels::Relocation;

/// One step: sequences to forget, new sequences, and tokens to compute.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepPlan {
    /// KV to copy before anything is computed, in order.
    pub placements: Vec<Placement>,
    /// New sequences.
    pub starts: Vec<SequenceStart>,
    /// What to compute; at most one slice for each sequence.
    pub slices: Vec<Slice>,
    /// Sequences to forget before anything else; ids that are not known are fine.
    pub dropped: Vec<u64>,
}

/// KV of some tokens, put at another place of the pool: see [`kvasir_kernels::place()`].
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Placement {
    /// Block table that has the tokens.
    pub source_block_ids: Vec<u32>,
    /// First of them, counted from the beginning of that table.
    pub source_start: u32,
    /// Block table that gets them.
    pub target_block_ids: Vec<u32>,
    /// Place of the first, counted from the beginning of that table.
    pub target_start: u32,
    /// Tokens.
    pub token_count: u32,
    /// New position minus old position; keys are turned by it.
    pub position_shift: i64,
}

impl Placement {
    pub(crate) fn relocation(&self) -> Relocation<'_> {
        Relocation {
            source_blocks: &self.source_block_ids,
            source_start: self.source_start as usize,
            target_blocks: &self.target_block_ids,
            target_start: self.target_start as usize,
            token_count: self.token_count as usize,
            position_shift: self.position_shift,
        }
    }
}

/// A new sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SequenceStart {
    /// Unique among the sequences that the engine knows.
    pub sequence_id: u64,
    /// Tokens of the prompt. Generated token `i` (from 0) is sampled at position `prompt_token_count + i - 1`.
    pub prompt_token_count: u32,
    /// How to sample.
    pub sampling: SamplingParams,
    /// Its first blocks, in order.
    pub block_ids: Vec<u32>,
    /// The prompt, needed only when [`SamplingParams::needs_prompt`]; else empty.
    pub prompt_token_ids: Vec<u32>,
}

/// Tokens of one sequence in one step.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Slice {
    /// Which sequence.
    pub sequence_id: u64,
    /// Position of the first token. In a sequence's first slice any position is allowed: the caller vouches for the KV before it.
    pub start_position: u32,
    /// Number of tokens.
    pub token_count: u32,
    /// The tokens; empty, with `token_count` 1, for the token sampled last.
    pub token_ids: Vec<u32>,
    /// Blocks added to the end of the sequence's table first.
    pub appended_block_ids: Vec<u32>,
    /// Whether to sample after the last token.
    pub sample: bool,
}

/// How tokens are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; else at most 2.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens whose probability reaches this; 0 means 1, all.
    pub top_p: f32,
    /// The random number of a token depends on this and its index only.
    pub seed: u64,
    /// Tokens to generate at most; at least 1.
    pub max_tokens: u32,
    /// Sampling one of these ends the sequence.
    pub stop_token_ids: Vec<u32>,
    /// Whether to report log-probabilities.
    pub logprobs: bool,
    /// How many of the most likely tokens to report, at most 20.
    pub top_logprobs: u32,
    /// Drop tokens less likely than this share of the most likely one; 0 drops none.
    pub min_p: f32,
    /// Keep the tokens whose surprise is nearest the entropy, up to this probability; 0 means 1, all.
    pub typical_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 0 means 1, none.
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens in the output.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens in the output, once for each occurrence.
    pub frequency_penalty: f32,
    /// Added to logits.
    pub logit_bias: Vec<(u32, f32)>,
    /// No stop token is sampled before so many tokens.
    pub min_tokens: u32,
    /// Sequences of tokens that must not be completed.
    pub bad_words: Vec<Vec<u32>>,
    /// Report log-probabilities of the prompt's tokens, with so many of the most likely ones at each place.
    pub prompt_logprobs: Option<u32>,
    /// What the whole text must match; ends with a stop token.
    pub constraint: Option<Constraint>,
}

impl SamplingParams {
    /// Whether sampling depends on the tokens of the prompt.
    pub fn needs_prompt(&self) -> bool {
        !is_one(self.repetition_penalty) || !self.bad_words.is_empty() || self.prompt_logprobs.is_some()
    }

    /// Whether tokens seen before change logits.
    pub fn needs_penalties(&self) -> bool {
        !is_one(self.repetition_penalty) || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// Whether sampling depends on tokens before.
    pub(crate) fn needs_history(&self) -> bool {
        self.needs_prompt() || self.needs_penalties()
    }
}

/// Whether a factor changes nothing; absent factors are 0 on the wire.
pub(crate) fn is_one(factor: f32) -> bool {
    factor == 0.0 || factor == 1.0
}

impl Default for SamplingParams {
    /// Greedy, one token.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: 0,
            max_tokens: 1,
            stop_token_ids: Vec::new(),
            logprobs: false,
            top_logprobs: 0,
            min_p: 0.0,
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            bad_words: Vec::new(),
            prompt_logprobs: None,
            constraint: None,
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepOutput {
    /// One for each slice, in their order.
    pub results: Vec<SliceResult>,
    /// Time spent computing.
    pub device_nanos: u64,
    /// Tokens computed at positions of a prompt.
    pub prompt_tokens: u64,
    /// Tokens computed after a prompt.
    pub decode_tokens: u64,
}

/// How one slice ended.
#[derive(Debug, Clone, PartialEq)]
pub struct SliceResult {
    /// Which sequence.
    pub sequence_id: u64,
    /// How.
    pub outcome: SliceOutcome,
    /// With `Sampled` and `Stopped`.
    pub token: Option<SampledToken>,
}

/// The ways a slice ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SliceOutcome {
    /// Computed; no sample was asked for.
    Computed,
    /// Computed and sampled.
    Sampled,
    /// Sampled a stop token, the `max_tokens`-th token, or the last that the context holds: the sequence computes nothing more.
    Stopped,
    /// Not computed: the sequence had stopped in an earlier step.
    Skipped,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// Vocabulary id.
    pub token_id: u32,
    /// `ln p` before temperature and truncation, when asked for.
    pub logprob: Option<f32>,
    /// The most likely tokens, most likely first, ties by lower id.
    pub top_logprobs: Vec<TokenLogprob>,
    /// With the first token of a sequence that asked for them: the prompt's tokens but the first, each with its probability after those
    /// before it.
    pub prompt_logprobs: Vec<PromptLogprob>,
}

/// A token of the prompt, as the model would have had it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptLogprob {
    /// The prompt's token.
    pub token_id: u32,
    /// Its `ln p`.
    pub logprob: f32,
    /// Its place among all tokens by probability, from 1.
    pub rank: u32,
    /// The most likely tokens there.
    pub top_logprobs: Vec<TokenLogprob>,
}

/// A token and its log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Vocabulary id.
    pub token_id: u32,
    /// `ln p`.
    pub logprob: f32,
}
