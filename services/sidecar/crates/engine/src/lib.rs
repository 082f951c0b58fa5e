//! The transformer of the sidecar: packed weights, a paged KV pool, steps that mix prompt chunks with decodes, and sampling.

#![forbid(unsafe_code)]

mod adjust;
mod backend;
pub mod bench;
mod candidates;
mod cpu_backend;
mod engine;
mod error;
mod footprint;
mod history;
mod layout;
mod load;
mod plan;
pub mod random;
mod reading;
mod sampling;
mod sequence;
pub mod synthetic;
mod validate;
mod weights;

pub use adjust::{LogitChanges, adjust, adjusts, logit_changes};
pub use backend::{Backend, TokenSource};
pub use engine::{BlocksUsed, Engine, EngineOptions, WeightFormat};
pub use error::{EngineError, StepError};
pub use footprint::Footprint;
pub use history::History;
pub use kvasir_grammar::{Constraint, GrammarError, Grammars, Mask};
pub use kvasir_kernels::{
    BlockGroup, Isa, KvDtype, KvPool, KvShards, PackedMatrix, PoolError, SwapDirection, SwapSpace, WeightType,
    block_groups,
};
pub use layout::{KvLayout, dtype_name};
pub use plan::{
    Placement, PromptLogprob, SampledToken, SamplingParams, SequenceStart, Slice, SliceOutcome, SliceResult,
    StepOutput, StepPlan, TokenLogprob,
};
pub use reading::{Read, Reading, read_logits};
pub use sampling::{Past, SamplingScratch, sample};
pub use weights::{LayerExtras, LayerWeights, Weights};
