//! A model's tokens as bytes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use llguidance::token_bytes_from_tokenizer_json;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use crate::GrammarError;

/// Where the tokenizer of a model lies: in its directory, or beside its file.
pub(crate) fn tokenizer_path(model: &Path) -> PathBuf {
    let directory = if model.is_dir() { Some(model) } else { model.parent() };
    directory.unwrap_or(Path::new(".")).join("tokenizer.json")
}

/// The trie of a vocabulary: byte-level BPE, or SentencePiece's pieces with single bytes for what they lack. Special tokens stand apart:
/// no text matches them. `eos_token_id` is one that ends a text.
pub(crate) fn read(tokenizer: &Path, vocab_size: usize, eos_token_id: u32) -> Result<TokEnv, GrammarError> {
    let broken = |error: &dyn std::fmt::Display| GrammarError::Tokenizer(format!("{}: {error}", tokenizer.display()));
    let text = std::fs::read(tokenizer).map_err(|error| broken(&error))?;
    let json: serde_json::Value = serde_json::from_slice(&text).map_err(|error| broken(&error))?;
    drop(text);
    let highest = [&json["added_tokens"], &json["model"]["vocab"]]
        .into_iter()
        .flat_map(|tokens| match tokens {
            serde_json::Value::Array(tokens) => tokens.iter().map(|token| token["id"].as_u64()).collect::<Vec<_>>(),
            serde_json::Value::Object(tokens) => tokens.values().map(serde_json::Value::as_u64).collect(),
            _ => Vec::new(),
        })
        .flatten()
        .max();
    // The table is as long as its highest id.
    if highest.is_some_and(|id| id >= TOKENS_MAX) {
        return Err(broken(&format!("token id {} is out of range", highest.unwrap_or(0))));
    }
    let mut tokens = token_bytes_from_tokenizer_json(&json).map_err(|error| broken(&error))?;
    // Matrices may have rows beyond the vocabulary, for a rounder shape; those are no text.
    tokens.resize(vocab_size, Vec::new());
    if eos_token_id as usize >= vocab_size {
        return Err(broken(&format!("end token {eos_token_id} is not below {vocab_size}")));
    }
    let info = TokRxInfo::new(vocab_size as u32, eos_token_id);
    Ok(Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &tokens))))
}

const TOKENS_MAX: u64 = 1 << 24;
