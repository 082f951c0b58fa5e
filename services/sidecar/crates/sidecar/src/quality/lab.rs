//! One engine, two tables: the prompt's context, and a bench on which documents are encoded apart.

use super::Item;
use super::methods::Method;
use kvasir_engine::{Engine, Placement, StepError, StepPlan};
use serde::Serialize;

/// See the module.
pub struct Lab {
    engine: Engine,
    context: Vec<u32>,
    bench: Vec<u32>,
}

/// What a full pass says: its greedy answer, and the logits that each token of it was chosen from.
pub struct Reference {
    answer: Vec<u32>,
    /// `[answer and what would have come next, vocab]`.
    logits: Vec<Vec<f32>>,
}

/// What a method's context says, forced along the full pass's answer, and left alone.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Tokens computed for this prompt's context.
    pub computed_tokens: usize,
    /// KL(full ‖ method) in nats of the next token, before each token of the full pass's answer and at its end.
    pub kl: Vec<f64>,
    /// Places, of those, where both hold the same token likeliest.
    pub agreements: usize,
    /// The greedy answer on this context, without the token that ended it.
    pub answer: Vec<u32>,
    /// Whether it is the full pass's, its end included.
    pub identical: bool,
}

impl Lab {
    /// Halves the pool.
    pub fn new(engine: Engine) -> Self {
        let blocks = engine.pool().block_count();
        Self {
            engine,
            context: (0..blocks / 2).collect(),
            bench: (blocks / 2..blocks / 2 * 2).collect(),
        }
    }

    /// The engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The context's block table.
    pub fn context(&self) -> &[u32] {
        &self.context
    }

    /// Computes tokens of the prompt at their position, over what the context table holds before; returns their number.
    pub fn compute(&mut self, tokens: &[u32], position: usize) -> Result<usize, StepError> {
        if !tokens.is_empty() {
            self.engine.probe(tokens, position, &self.context, &[])?;
        }
        Ok(tokens.len())
    }

    /// Computes tokens on the bench, over what it holds before.
    pub fn encode(&mut self, tokens: &[u32], position: usize) -> Result<(), StepError> {
        if !tokens.is_empty() {
            self.engine.probe(tokens, position, &self.bench, &[])?;
        }
        Ok(())
    }

    /// Puts a run of the bench into the context.
    pub fn place(&mut self, from: usize, to: usize, token_count: usize, position_shift: i64) -> Result<(), StepError> {
        let placement = Placement {
            source_block_ids: self.bench.clone(),
            source_start: from as u32,
            target_block_ids: self.context.clone(),
            target_start: to as u32,
            token_count: token_count as u32,
            position_shift,
        };
        let plan = StepPlan {
            placements: vec![placement],
            ..StepPlan::default()
        };
        self.engine.step(&plan).map(|_| ())
    }

    /// The full pass.
    pub fn reference(&mut self, item: &Item) -> Result<Reference, StepError> {
        self.compute(&item.context(), 0)?;
        let last = item.suffix.len() - 1;
        let first = self
            .engine
            .probe(&item.suffix, item.context_len(), &self.context, &[last])?;
        let (answer, logits) = self.continue_greedily(item, Vec::new(), first)?;
        Ok(Reference { answer, logits })
    }

    /// One method on one item.
    pub fn measure(&mut self, item: &Item, method: Method, reference: &Reference) -> Result<Outcome, StepError> {
        let computed_tokens = method(self, item)?;
        self.outcome(item, computed_tokens, reference)
    }

    /// What the context says as it lies there now.
    pub fn outcome(
        &mut self,
        item: &Item,
        computed_tokens: usize,
        reference: &Reference,
    ) -> Result<Outcome, StepError> {
        let mut forced = item.suffix.clone();
        forced.extend(&reference.answer);
        let rows: Vec<usize> = (item.suffix.len() - 1..forced.len())
            .take(reference.logits.len())
            .collect();
        let logits = self.engine.probe(&forced, item.context_len(), &self.context, &rows)?;
        let vocab = logits.len() / rows.len();
        let pairs = || reference.logits.iter().zip(logits.chunks_exact(vocab));
        let kl: Vec<f64> = pairs().map(|(full, other)| divergence(full, other)).collect();
        let agreements = pairs()
            .filter(|(full, other)| likeliest(full) == likeliest(other))
            .count();
        let parting = pairs().position(|(full, other)| likeliest(full) != likeliest(other));
        let answer = match parting {
            None => reference.answer.clone(),
            Some(index) => {
                let same = reference.answer[..index].to_vec();
                let own = logits[index * vocab..(index + 1) * vocab].to_vec();
                self.continue_greedily(item, same, own)?.0
            }
        };
        Ok(Outcome {
            computed_tokens,
            agreements,
            kl,
            answer,
            identical: parting.is_none(),
        })
    }

    /// Extends an answer by the likeliest token of `next` and so on, until a stop token or `max_tokens`; with the logits of each choice.
    fn continue_greedily(
        &mut self,
        item: &Item,
        mut answer: Vec<u32>,
        mut next: Vec<f32>,
    ) -> Result<(Vec<u32>, Vec<Vec<f32>>), StepError> {
        let mut logits = Vec::new();
        loop {
            let token = likeliest(&next);
            logits.push(next);
            if item.stop_token_ids.contains(&token) {
                return Ok((answer, logits));
            }
            answer.push(token);
            if answer.len() == item.max_tokens {
                return Ok((answer, logits));
            }
            let position = item.context_len() + item.suffix.len() + answer.len() - 1;
            next = self.engine.probe(&[token], position, &self.context, &[0])?;
        }
    }
}

/// KL(p ‖ q) of two rows of logits, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let (p, q) = (log_softmax(p), log_softmax(q));
    let terms = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q));
    terms.sum::<f64>().max(0.0)
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let total = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum::<f64>().ln();
    logits.iter().map(|x| f64::from(*x) - largest - total).collect()
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}
