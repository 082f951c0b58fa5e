//! How loading and stepping fail.

use kvasir_kernels::{BatchError, KernelError, PoolError};

/// An engine that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model's files are not what they should be.
    #[error(transparent)]
    Model(#[from] kvasir_model::LoadError),
    /// A weight's shape does not follow from the configuration.
    #[error("{tensor}: {expected}, found {rows}x{cols}")]
    Shape {
        /// Which weight.
        tensor: String,
        /// What the configuration asks for.
        expected: String,
        /// Rows found.
        rows: usize,
        /// Columns found.
        cols: usize,
    },
    /// A weight cannot be packed.
    #[error("{tensor}: {source}")]
    Weight {
        /// Which weight.
        tensor: String,
        /// Why.
        source: KernelError,
    },
    /// The configuration contradicts itself.
    #[error("model configuration: {0}")]
    Configuration(String),
    /// The KV pool cannot be made.
    #[error("KV pool: {0}")]
    Pool(#[from] PoolError),
    /// An option is out of range.
    #[error("{option} is {value}; {remedy}")]
    Option {
        /// Its name.
        option: &'static str,
        /// Its value.
        value: usize,
        /// What to do.
        remedy: &'static str,
    },
    /// Threads were refused.
    #[error("the system refused to start compute threads: {0}")]
    Threads(std::io::Error),
}

/// A step that was refused. Every variant but `Internal` leaves the engine as it was.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum StepError {
    /// A slice names a sequence that was not started, or was dropped.
    #[error("sequence {sequence_id} is not known; start it first")]
    UnknownSequence {
        /// The sequence.
        sequence_id: u64,
    },
    /// A start names a sequence that exists, or two starts are equal.
    #[error("sequence {sequence_id} exists already; drop it first or use a new id")]
    SequenceExists {
        /// The sequence.
        sequence_id: u64,
    },
    /// A sequence has two slices.
    #[error("sequence {sequence_id} has more than one slice in this step; join them")]
    RepeatedSlice {
        /// The sequence.
        sequence_id: u64,
    },
    /// A start's numbers are out of range.
    #[error("sequence {sequence_id}: {field} is {value}; {remedy}")]
    InvalidStart {
        /// The sequence.
        sequence_id: u64,
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        remedy: String,
    },
    /// A block was to be filled by a swap that did not get there.
    #[error("block {block} was being swapped in, and the swap ended early; swap it in again, or drop the sequence")]
    NotSwappedIn {
        /// The block.
        block: u32,
    },
    /// A slice without tokens.
    #[error("sequence {sequence_id}: token_count is 0; leave the slice out")]
    EmptySlice {
        /// The sequence.
        sequence_id: u64,
    },
    /// `token_ids` do not match `token_count`.
    #[error(
        "sequence {sequence_id}: {token_ids} token ids for token_count {token_count}; give all of them, or none with token_count 1"
    )]
    TokenCountMismatch {
        /// The sequence.
        sequence_id: u64,
        /// Ids given.
        token_ids: usize,
        /// Tokens announced.
        token_count: u32,
    },
    /// A slice wants the last sampled token, and there is none at that position.
    #[error("sequence {sequence_id}: no token was sampled for position {position}; send its id")]
    NoSampledToken {
        /// The sequence.
        sequence_id: u64,
        /// Position of the slice.
        position: u32,
    },
    /// A token id beyond the vocabulary.
    #[error("sequence {sequence_id}: token id {token_id} is not below the vocabulary size {vocab_size}")]
    UnknownToken {
        /// The sequence.
        sequence_id: u64,
        /// The id.
        token_id: u32,
        /// Size of the vocabulary.
        vocab_size: usize,
    },
    /// A slice does not continue where the sequence is.
    #[error("sequence {sequence_id}: slice starts at position {found}, the next one is {expected}")]
    PositionGap {
        /// The sequence.
        sequence_id: u64,
        /// Next position.
        expected: u32,
        /// Position of the slice.
        found: u32,
    },
    /// The block table does not reach the slice's end.
    #[error(
        "sequence {sequence_id}: {blocks} blocks of {block_size} tokens do not hold position {last_position}; append blocks"
    )]
    MissingBlocks {
        /// The sequence.
        sequence_id: u64,
        /// Blocks in its table.
        blocks: usize,
        /// Tokens per block.
        block_size: usize,
        /// Last position of the slice.
        last_position: u64,
    },
    /// A block id beyond the pool.
    #[error("sequence {sequence_id}: block {block} does not exist, the pool has {block_count}")]
    UnknownBlock {
        /// The sequence.
        sequence_id: u64,
        /// The block.
        block: u32,
        /// Blocks in the pool.
        block_count: u32,
    },
    /// Two slices, or two places of one, would write the same block.
    #[error("sequence {sequence_id}: block {block} is written twice in this step; a block has one writer")]
    BlockWrittenTwice {
        /// One of the sequences.
        sequence_id: u64,
        /// The block.
        block: u32,
    },
    /// More positions than the model has.
    #[error("sequence {sequence_id}: position {last_position} is beyond the context of {context_length} tokens")]
    ContextExceeded {
        /// The sequence.
        sequence_id: u64,
        /// Last position of the slice.
        last_position: u64,
        /// Positions of the model.
        context_length: usize,
    },
    /// Sampling before the prompt's last token.
    #[error(
        "sequence {sequence_id}: cannot sample after position {last_position}, the prompt has {prompt_token_count} tokens"
    )]
    SampleInsidePrompt {
        /// The sequence.
        sequence_id: u64,
        /// Last position of the slice.
        last_position: u32,
        /// Tokens of its prompt.
        prompt_token_count: u32,
    },
    /// More tokens than a step may have.
    #[error("the step has {tokens} tokens; at most {step_token_max} are allowed")]
    TooManyTokens {
        /// Tokens of the step.
        tokens: usize,
        /// The limit.
        step_token_max: usize,
    },
    /// A placement names what the pool has not.
    #[error("placement {index}: {source}")]
    Placement {
        /// Which, in the plan.
        index: usize,
        /// Why.
        source: PoolError,
    },
    /// `logits` was called while sequences are running, or for more tokens than the pool holds.
    #[error("logits need the whole pool: {0}")]
    PoolInUse(String),
    /// A defect of ours: what was validated was refused further down.
    #[error("internal: {0}")]
    Internal(String),
}

impl From<KernelError> for StepError {
    fn from(error: KernelError) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<BatchError> for StepError {
    fn from(error: BatchError) -> Self {
        Self::Internal(error.to_string())
    }
}
