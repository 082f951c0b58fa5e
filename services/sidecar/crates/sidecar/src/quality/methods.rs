//! Ways to come by the KV of a prompt's context. A new one is a function and a line in [`METHODS`].

use super::Item;
use super::lab::Lab;
use kvasir_engine::StepError;

/// Fills the lab's context table with KV for prefix and documents; returns how many tokens it computed for this prompt. What was encoded
/// apart from the prompt (and would lie in a cache) does not count.
pub type Method = fn(&mut Lab, &Item) -> Result<usize, StepError>;

/// Tokens at each document's beginning that `seams` computes again, of a hundred.
const SEAM_PERCENT: usize = 15;

/// By name.
pub const METHODS: &[(&str, Method)] = &[
    ("full", full),
    ("alone", alone),
    ("alone-unturned", alone_unturned),
    ("after-prefix", after_prefix),
    ("seams", seams),
];

/// Everything in one pass: the reference, and the check of the instrument (its divergence is 0).
fn full(lab: &mut Lab, item: &Item) -> Result<usize, StepError> {
    lab.compute(&item.context(), 0)
}

/// Each document encoded alone from position 0, keys turned to where it stands (PromptCache's and CacheBlend's starting point, r = 0).
fn alone(lab: &mut Lab, item: &Item) -> Result<usize, StepError> {
    let computed = lab.compute(&item.prefix, 0)?;
    for (position, document) in item.placed_documents() {
        lab.encode(document, 0)?;
        lab.place(0, position, document.len(), position as i64)?;
    }
    Ok(computed)
}

/// The same without turning keys: a mistake, to see that the instrument sees it.
fn alone_unturned(lab: &mut Lab, item: &Item) -> Result<usize, StepError> {
    let computed = lab.compute(&item.prefix, 0)?;
    for (position, document) in item.placed_documents() {
        lab.encode(document, 0)?;
        lab.place(0, position, document.len(), 0)?;
    }
    Ok(computed)
}

/// Each document encoded after the prompt's prefix instead of alone: a primed cache costs nothing later.
fn after_prefix(lab: &mut Lab, item: &Item) -> Result<usize, StepError> {
    let computed = lab.compute(&item.prefix, 0)?;
    let primed = item.prefix.len();
    lab.encode(&item.prefix, 0)?;
    for (position, document) in item.placed_documents() {
        lab.encode(document, primed)?;
        lab.place(primed, position, document.len(), position as i64 - primed as i64)?;
    }
    Ok(computed)
}

/// `alone`, then the beginning of each document but the first is computed again over what stands before it: where a passage refers to the
/// one before, it mostly does so at once.
fn seams(lab: &mut Lab, item: &Item) -> Result<usize, StepError> {
    let mut computed = alone(lab, item)?;
    for (position, document) in item.placed_documents().skip(1) {
        let count = (document.len() * SEAM_PERCENT).div_ceil(100);
        computed += lab.compute(&document[..count], position)?;
    }
    Ok(computed)
}
