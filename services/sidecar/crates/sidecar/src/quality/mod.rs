//! `kvasir-sidecar quality`: what answers lose when KV is not what a full pass over the prompt would have computed.

mod baselines;
pub mod coding;
mod lab;
mod methods;
pub mod profile;
mod range_coder;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use kvasir_engine::Engine;
use serde::{Deserialize, Serialize};

use crate::cli::QualityFlags;
use crate::serve::{Fatal, load_engine};
use lab::{Lab, Outcome};
use methods::{METHODS, Method};

/// One question over documents, as tokens: the prompt is `prefix`, the documents in order, `suffix`.
#[derive(Debug, Clone, Deserialize)]
pub struct Item {
    /// For the reader of the results.
    pub id: String,
    /// Before the documents: system prompt and introduction.
    pub prefix: Vec<u32>,
    /// Each non-empty.
    pub documents: Vec<Vec<u32>>,
    /// After the documents: the question. At least one token.
    pub suffix: Vec<u32>,
    /// Tokens of an answer at most.
    pub max_tokens: usize,
    /// An answer ends before one of these.
    pub stop_token_ids: Vec<u32>,
}

/// One line of output.
#[derive(Debug, Serialize)]
struct Line<'a> {
    id: &'a str,
    method: &'a str,
    /// Tokens of prefix and documents.
    context_tokens: usize,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Runs every method on every item of a file with one JSON object a line; prints one JSON object for each pair. The first method is `full`,
/// which the others are measured against.
///
/// # Errors
/// A model that does not load, an unknown method, an item that is malformed or larger than half the pool.
pub fn quality(flags: &QualityFlags) -> Result<(), Fatal> {
    let methods = chosen(&flags.methods)?;
    let mut lab = Lab::new(load_engine(&flags.engine, &mut |_, _| {})?);
    let mut out = std::io::stdout().lock();
    for (index, item) in read_items(&flags.items)?.into_iter().enumerate() {
        check(&item, lab.engine(), index + 1)?;
        let reference = lab.reference(&item)?;
        for (name, method) in &methods {
            let outcome = lab.measure(&item, *method, &reference)?;
            let context_tokens = item.context_len();
            let line = Line {
                id: &item.id,
                method: name,
                context_tokens,
                outcome,
            };
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
        }
        out.flush()?;
    }
    Ok(())
}

/// What methods there are, for `--help`.
pub fn method_names() -> String {
    let names: Vec<&str> = METHODS.iter().map(|(name, _)| *name).collect();
    names.join(", ")
}

fn read_items(path: &Path) -> Result<Vec<Item>, Fatal> {
    let file = std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let item = |(index, line): (usize, std::io::Result<String>)| {
        let parsed = serde_json::from_str(&line?);
        parsed.map_err(|error| Fatal::from(format!("{}: line {}: {error}", path.display(), index + 1)))
    };
    BufReader::new(file).lines().enumerate().map(item).collect()
}

fn chosen(names: &[String]) -> Result<Vec<(&'static str, Method)>, Fatal> {
    let find = |name: &String| {
        let found = METHODS.iter().find(|(known, _)| known == name).copied();
        found.ok_or_else(|| Fatal::from(format!("there is no method {name}; there is: {}", method_names())))
    };
    if names.is_empty() {
        return Ok(METHODS.to_vec());
    }
    names.iter().map(find).collect()
}

fn check(item: &Item, engine: &Engine, line: usize) -> Result<(), Fatal> {
    if item.suffix.is_empty() || item.max_tokens == 0 || item.documents.iter().any(Vec::is_empty) {
        let what = "suffix, max_tokens and each document must hold at least one token";
        return Err(format!("line {line}: {what}").into());
    }
    let length = item.context_len() + item.suffix.len() + item.max_tokens;
    let half = engine.pool().block_count() as usize / 2 * engine.layout().block_size;
    let limit = half.min(engine.config().context_length);
    if length > limit {
        return Err(format!("line {line}: {length} tokens; at most {limit} fit, by context and --kv-bytes").into());
    }
    Ok(())
}

impl Item {
    /// Tokens of prefix and documents.
    pub fn context_len(&self) -> usize {
        self.prefix.len() + self.documents.iter().map(Vec::len).sum::<usize>()
    }

    /// Prefix and documents.
    pub fn context(&self) -> Vec<u32> {
        let mut tokens = self.prefix.clone();
        tokens.extend(self.documents.iter().flatten());
        tokens
    }

    /// Documents, each with the position of its first token.
    pub fn placed_documents(&self) -> impl Iterator<Item = (usize, &Vec<u32>)> {
        self.documents.iter().scan(self.prefix.len(), |position, document| {
            let start = *position;
            *position += document.len();
            Some((start, document))
        })
    }
}

#[cfg(test)]
mod tests;
