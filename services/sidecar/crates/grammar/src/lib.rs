//! Structured output: which tokens may come next so that the whole text matches a JSON schema, a regular expression or a choice. The
//! parsing is that of the `llguidance` crate (Earley's algorithm over a lexer of derivatives, run against a trie of the vocabulary).

#![forbid(unsafe_code)]

mod constraint;
mod grammars;
mod guide;
mod mask;
mod mask_thread;
mod vocabulary;

pub use constraint::Constraint;
pub use grammars::Grammars;
pub use guide::Guide;
pub use mask::Mask;

/// A constraint that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is wrong, contradicts itself, uses what is not supported, or is too large.
    #[error("{0}")]
    Constraint(String),
    /// The model's tokens cannot be read as bytes.
    #[error("structured output needs the model's tokenizer: {0}")]
    Tokenizer(String),
    /// A defect of ours.
    #[error("internal: {0}")]
    Internal(String),
}
