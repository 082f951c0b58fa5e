//! What is wanted of logits, as the kernels take it, and their answer. Pure.

use crate::ops::{LogitEdit, LogprobRow, LogprobToken, PenaltyRow, SampleRow, TOP_MAX};
use crate::seen::{SeenChanges, SeenSlots};
use kvasir_engine::{
    History, Past, PromptLogprob, Read, Reading, SampledToken, SamplingParams, TokenLogprob, adjusts, logit_changes,
};

/// One pass's readings. Rows of logits come first, adjusted copies of some of them after.
#[derive(Debug, Default)]
pub struct ReadPlan {
    /// Rows of logits that are copied to be changed.
    pub copies: Vec<u32>,
    /// Slots of tokens seen that there must be memory for.
    pub seen_slots: usize,
    /// What the device does not know of those yet.
    pub seen: SeenChanges,
    /// Added to logits first; rows of this and of the next two are counted from the first copy.
    pub biases: Vec<LogitEdit>,
    /// Penalties for tokens seen.
    pub penalties: Vec<PenaltyRow>,
    /// What must not be sampled.
    pub forbidden: Vec<LogitEdit>,
    /// Copies under a constraint: row of the logits, and which copy.
    pub masks: Vec<[u32; 2]>,
    /// What each of them allows, `ceil(vocab / 32)` words.
    pub bits: Vec<u32>,
    /// Draws.
    pub samples: Vec<SampleRow>,
    /// Probabilities.
    pub logprobs: Vec<LogprobRow>,
    /// Most likely tokens told beside each.
    pub top: usize,
    answers: Vec<Answer>,
}

#[derive(Debug)]
enum Answer {
    Token {
        sample: usize,
        /// And how many of the most likely tokens.
        logprob: Option<(usize, usize)>,
    },
    Prompt {
        token: u32,
        logprob: usize,
        top: usize,
    },
    Nothing,
}

/// Where the kernels' answers lie, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerLayout {
    /// f32; tokens come before it.
    pub logprobs: usize,
    /// u32.
    pub top_tokens: usize,
    /// u32.
    pub ranks: usize,
    /// All.
    pub bytes: usize,
}

impl ReadPlan {
    /// Reading `i` is of row `i` of `row_count` rows of logits; `slots` is what the device knows of tokens seen before.
    pub fn new(readings: &[Reading<'_>], row_count: usize, vocab: usize, slots: &mut SeenSlots) -> Self {
        let penalised =
            |reading: &&Reading<'_>| matches!(reading, Reading::Sample { params, .. } if params.needs_penalties());
        let mut plan = Self {
            seen_slots: slots.begin(readings.iter().filter(penalised).count()),
            ..Self::default()
        };
        for (row, reading) in readings.iter().enumerate() {
            let answer = match *reading {
                Reading::Sample { params, past, index } => {
                    let mut from = row as u32;
                    if adjusts(params, index) || past.mask.is_some() {
                        from = (row_count + plan.copies.len()) as u32;
                        plan.adjust(row as u32, vocab, (params, past, index), slots);
                    }
                    plan.sample([row as u32, from], vocab, params, index)
                }
                Reading::Prompt { token, top } => {
                    let top = (top as usize).min(vocab).min(TOP_MAX);
                    let logprob = plan.logprob(row as u32, LogprobToken::Given(token), top);
                    Answer::Prompt { token, logprob, top }
                }
                Reading::Nothing => Answer::Nothing,
            };
            plan.answers.push(answer);
        }
        plan
    }

    /// Draws from row `from`; log-probabilities are those of `row`.
    fn sample(&mut self, [row, from]: [u32; 2], vocab: usize, params: &SamplingParams, index: u64) -> Answer {
        let sample = self.samples.len();
        self.samples.push(SampleRow {
            seed: params.seed,
            index,
            row: from,
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
            min_p: params.min_p,
            typical_p: params.typical_p,
        });
        let logprob = params.logprobs.then(|| {
            let top = (params.top_logprobs as usize).min(vocab).min(TOP_MAX);
            // Of the distribution as the model gave it.
            (self.logprob(row, LogprobToken::Chosen(sample as u32), top), top)
        });
        Answer::Token { sample, logprob }
    }

    fn adjust(
        &mut self,
        row: u32,
        vocab: usize,
        (params, past, index): (&SamplingParams, Past<'_>, u64),
        slots: &mut SeenSlots,
    ) {
        let copy = self.copies.len() as u32;
        self.copies.push(row);
        let nothing = History::default();
        let history = past.history.unwrap_or(&nothing);
        let mut changes = logit_changes(params, history, index, vocab);
        if params.needs_penalties() {
            let repetition = match params.repetition_penalty {
                0.0 => 1.0,
                repetition => repetition,
            };
            self.penalties.push(PenaltyRow {
                row: copy,
                slot: slots.slot(past.sequence, history, vocab, &mut self.seen),
                repetition,
                frequency: params.frequency_penalty,
                presence: params.presence_penalty,
            });
        }
        match past.mask {
            // A text that cannot go on is cut, and not by a token that says it is complete.
            Some(mask) if mask.is_dead() => {
                let stops = params.stop_token_ids.iter().filter(|token| (**token as usize) < vocab);
                changes.forbidden.extend(stops);
            }
            Some(mask) => {
                self.masks.push([row, copy]);
                let begin = self.bits.len();
                self.bits.extend(mask.words().iter().take(vocab.div_ceil(32)));
                self.bits.resize(begin + vocab.div_ceil(32), 0);
                if mask.is_complete() {
                    for token in params.stop_token_ids.iter().filter(|token| (**token as usize) < vocab) {
                        self.bits[begin + *token as usize / 32] |= 1 << (token % 32);
                    }
                }
            }
            None => {}
        }
        let edit = |token: u32, bias: Option<f32>| LogitEdit { row: copy, token, bias };
        let biases = changes.biases.into_iter();
        self.biases.extend(biases.map(|(token, bias)| edit(token, Some(bias))));
        self.forbidden
            .extend(changes.forbidden.into_iter().map(|token| edit(token, None)));
    }

    fn logprob(&mut self, row: u32, token: LogprobToken, top: usize) -> usize {
        self.top = self.top.max(top);
        self.logprobs.push(LogprobRow { row, token });
        self.logprobs.len() - 1
    }

    /// Which draw each reading is, for those that are one.
    pub fn draws(&self) -> Vec<Option<u32>> {
        let draw = |answer: &Answer| match answer {
            Answer::Token { sample, .. } => Some(*sample as u32),
            _ => None,
        };
        self.answers.iter().map(draw).collect()
    }

    /// Where the kernels write.
    pub fn layout(&self) -> AnswerLayout {
        let logprobs = 4 * self.samples.len();
        let top_tokens = logprobs + 4 * self.logprobs.len() * (1 + self.top);
        let ranks = top_tokens + 4 * self.logprobs.len() * self.top;
        AnswerLayout {
            logprobs,
            top_tokens,
            ranks,
            bytes: ranks + 4 * self.logprobs.len(),
        }
    }

    /// The readings' answers, from what the kernels wrote.
    pub fn answers(&self, bytes: &[u8]) -> Vec<Read> {
        let layout = self.layout();
        let word = |offset: usize, index: usize| -> u32 {
            let at = offset + 4 * index;
            let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
            word.map_or(0, u32::from_ne_bytes)
        };
        let logprob_of = |row: usize, place: usize| f32::from_bits(word(layout.logprobs, row * (1 + self.top) + place));
        let tops_of = |row: usize, count: usize| -> Vec<TokenLogprob> {
            let one = |i: usize| TokenLogprob {
                token_id: word(layout.top_tokens, row * self.top + i),
                logprob: logprob_of(row, 1 + i),
            };
            (0..count).map(one).collect()
        };
        let answer = |answer: &Answer| match *answer {
            Answer::Token { sample, logprob } => Read::Token(SampledToken {
                token_id: word(0, sample),
                logprob: logprob.map(|(row, _)| logprob_of(row, 0)),
                top_logprobs: logprob.map_or(Vec::new(), |(row, top)| tops_of(row, top)),
                prompt_logprobs: Vec::new(),
            }),
            Answer::Prompt { token, logprob, top } => Read::Prompt(PromptLogprob {
                token_id: token,
                logprob: logprob_of(logprob, 0),
                rank: word(layout.ranks, logprob),
                top_logprobs: tops_of(logprob, top),
            }),
            Answer::Nothing => Read::Nothing,
        };
        self.answers.iter().map(answer).collect()
    }
}
