//! What a step is asked to do and what it answers. Mirrors `kvasir.kernel.v1`, without the wire.

/// One step: sequences to forget, new sequences, and tokens to compute.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StepPlan {
    /// New sequences.
    pub starts: Vec<SequenceStart>,
    /// What to compute; at most one slice for each sequence.
    pub slices: Vec<Slice>,
    /// Sequences to forget before anything else; ids that are not known are fine.
    pub dropped: Vec<u64>,
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
}

/// A token and its log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// Vocabulary id.
    pub token_id: u32,
    /// `ln p`.
    pub logprob: f32,
}
