//! From logits to tokens: the CPU engine is the reference, token by token.

use super::harness::{Harness, Random, near, same, text};
use kvasir_cuda::ops::{self, LogitEdit, LogprobRow, LogprobToken, Logprobs, PenaltyRow, SampleRow, SeenToken};
use kvasir_engine::{History, Isa, Past, SamplingParams, SamplingScratch, adjust, logit_changes, sample as cpu_sample};
use std::collections::BTreeSet;

fn drawn(h: &Harness<'_>, logits: &[f32], vocab: usize, rows: &[SampleRow]) -> Result<Vec<u32>, String> {
    let bytes: Vec<u8> = rows.iter().flat_map(SampleRow::to_bytes).collect();
    let out = h.output(rows.len() * 4)?;
    ops::sample(h.device, [&h.f32s(logits)?, &h.bytes(&bytes)?, &out], rows, vocab).map_err(text)?;
    h.read_u32s(&out, rows.len())
}

fn reference(logits: &[f32], vocab: usize, row: &SampleRow) -> u32 {
    let params = SamplingParams {
        temperature: row.temperature,
        top_k: row.top_k,
        top_p: row.top_p,
        min_p: row.min_p,
        typical_p: row.typical_p,
        seed: row.seed,
        ..SamplingParams::default()
    };
    let logits = &logits[row.row as usize * vocab..][..vocab];
    let scratch = &mut SamplingScratch::default();
    cpu_sample(Isa::detect(), logits, &params, Past::default(), row.index, scratch).token_id
}

fn random_row(random: &mut Random, rows: usize, vocab: usize) -> SampleRow {
    SampleRow {
        seed: random.bits(),
        index: random.bits() >> random.range(0, 64),
        row: random.range(0, rows) as u32,
        temperature: random.pick(&[0.0, 0.3, 1.0, 1.0, 2.0]),
        top_k: random.pick(&[0, 0, 1, 7, 40, vocab as u32, u32::MAX]),
        top_p: random.pick(&[0.0, 1.0, 1.0, 0.9, 0.5, 0.01, 0.999]),
        min_p: random.pick(&[0.0, 0.0, 0.1, 0.5]),
        typical_p: random.pick(&[0.0, 0.0, 1.0, 0.95, 0.5, 0.1]),
    }
}

pub fn sample(h: &mut Harness<'_>) -> Result<(), String> {
    for (vocab, rows, draws) in [(1, 1, 3), (83, 2, 12), (3001, 2, 8)] {
        let deviation = h.random.pick(&[0.5, 2.0, 6.0]);
        let logits = h.random.normals(rows * vocab, deviation);
        let chosen: Vec<SampleRow> = (0..draws).map(|_| random_row(&mut h.random, rows, vocab)).collect();
        let found = drawn(h, &logits, vocab, &chosen)?;
        for (row, found) in chosen.iter().zip(found) {
            let expected = reference(&logits, vocab, row);
            same(&format!("token for {row:?}"), &[found], &[expected])?;
        }
    }
    Ok(())
}

/// Equal logits, minus infinity, NaN, -0 beside 0, and all of a row forbidden.
pub fn hard_rows(h: &mut Harness<'_>) -> Result<(), String> {
    let (vocab, rows) = (600, 5);
    let mut logits = h.random.normals(rows * vocab, 1.0);
    for (row, logits) in logits.chunks_mut(vocab).enumerate() {
        for logit in logits.iter_mut() {
            *logit = match row {
                0 => logit.round(),
                1 if *logit < 1.0 => f32::NEG_INFINITY,
                2 => f32::NEG_INFINITY,
                3 if *logit < 0.0 => f32::NAN,
                4 => 0.0 * logit.signum(),
                _ => *logit,
            };
        }
    }
    let chosen: Vec<SampleRow> = (0..20)
        .map(|i| SampleRow {
            row: i % rows as u32,
            ..random_row(&mut h.random, rows, vocab)
        })
        .collect();
    let found = drawn(h, &logits, vocab, &chosen)?;
    for (row, found) in chosen.iter().zip(found) {
        same(
            &format!("token for {row:?}"),
            &[found],
            &[reference(&logits, vocab, row)],
        )?;
    }
    Ok(())
}

pub fn logprobs(h: &mut Harness<'_>) -> Result<(), String> {
    for (vocab, top) in [(83, 0), (83, 20), (2500, 5), (4, 4)] {
        let mut logits = h.random.normals(2 * vocab, 3.0);
        logits[1] = logits[0];
        let tokens = [0, 1].map(|_| h.random.range(0, vocab) as u32);
        // The second is named by its place among what was chosen.
        let rows = [
            LogprobRow {
                row: 0,
                token: LogprobToken::Given(tokens[0]),
            },
            LogprobRow {
                row: 1,
                token: LogprobToken::Chosen(2),
            },
        ];
        let bytes: Vec<u8> = rows.iter().flat_map(LogprobRow::to_bytes).collect();
        let (out, top_tokens) = (h.output(2 * (1 + top) * 4)?, h.output(2 * top * 4)?);
        let ranks = h.output(2 * 4)?;
        let op = Logprobs {
            logits: &h.f32s(&logits)?,
            rows: &h.bytes(&bytes)?,
            chosen: &h.u32s(&[u32::MAX, u32::MAX, tokens[1]])?,
            out: &out,
            top_tokens: &top_tokens,
            ranks: &ranks,
            row_count: 2,
            vocab,
            top,
        };
        ops::logprobs(h.device, &op).map_err(text)?;
        let found = h.read_f32s(&out, 2 * (1 + top))?;
        let found_ranks = h.read_u32s(&ranks, 2)?;
        let found_tokens = if top == 0 {
            Vec::new()
        } else {
            h.read_u32s(&top_tokens, 2 * top)?
        };
        for (row, token) in tokens.into_iter().enumerate() {
            let logits = &logits[row * vocab..][..vocab];
            let total: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
            let logprob = |token: u32| f64::from(logits[token as usize]) - total.ln();
            let mut order: Vec<u32> = (0..vocab as u32).collect();
            order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
            same(
                "most likely tokens",
                &found_tokens[row * top..(row + 1) * top],
                &order[..top],
            )?;
            let above = logits.iter().filter(|logit| **logit > logits[token as usize]).count();
            same("rank", &[found_ranks[row]], &[above as u32 + 1])?;
            for (i, token) in [token].iter().chain(&order[..top]).enumerate() {
                near(
                    "logprob",
                    i,
                    f64::from(found[row * (1 + top) + i]),
                    logprob(*token),
                    2e-6,
                )?;
            }
        }
    }
    Ok(())
}

/// Masks of constraints on copies of rows: one leaves some, one leaves nothing but what a penalty forbade, one nothing at all.
pub fn masks(h: &mut Harness<'_>) -> Result<(), String> {
    for vocab in [31_usize, 64, 2500] {
        let words = vocab.div_ceil(32);
        let logits = h.random.normals(3 * vocab, 2.0);
        let rows = [2, 0, 1, 0];
        let (from, adjusted) = (h.f32s(&logits)?, h.output(4 * vocab * 4)?);
        ops::copy_rows(h.device, [&from, &adjusted, &h.u32s(&rows)?], 4, vocab).map_err(text)?;
        let mut expected: Vec<f32> = rows
            .iter()
            .flat_map(|row| logits[*row as usize * vocab..][..vocab].to_vec())
            .collect();
        same("copies", &h.read_f32s(&adjusted, 4 * vocab)?, &expected)?;
        // The third copy's only allowed token is forbidden already.
        let forbidden = LogitEdit {
            row: 2,
            token: 5,
            bias: None,
        };
        ops::edit_logits(h.device, [&adjusted, &h.bytes(&forbidden.to_bytes())?], 1, vocab).map_err(text)?;
        let mut bits: Vec<u32> = (0..words).map(|_| h.random.bits() as u32 | 1).collect();
        bits.extend((0..words).map(|word| if word == 0 { 1 << 5 } else { 0 }));
        bits.extend(vec![0; words]);
        let masked = [[2, 0], [1, 2], [0, 3]];
        let (masks, bits_buffer) = (h.u32s(masked.as_flattened())?, h.u32s(&bits)?);
        ops::mask_rows(h.device, [&from, &adjusted, &masks, &bits_buffer], 3, vocab).map_err(text)?;
        for (mask, [row, copy]) in masked.into_iter().enumerate() {
            for token in 0..vocab {
                let is_allowed = bits[mask * words + token / 32] >> (token % 32) & 1 == 1;
                expected[copy as usize * vocab + token] = if is_allowed {
                    logits[row as usize * vocab + token]
                } else {
                    f32::NEG_INFINITY
                };
            }
        }
        same("masked", &h.read_f32s(&adjusted, 4 * vocab)?, &expected)?;
    }
    Ok(())
}

pub fn chosen_tokens(h: &mut Harness<'_>) -> Result<(), String> {
    let (count, from) = (150, 200);
    let tokens: Vec<u32> = (0..from).map(|_| h.random.bits() as u32).collect();
    let mut expected = vec![7; count];
    let (ids, rows) = (h.u32s(&expected)?, h.random.permutation(count));
    let pairs: Vec<u32> = rows[..130]
        .iter()
        .flat_map(|row| [*row, h.random.range(0, from) as u32])
        .collect();
    ops::chosen_tokens(h.device, [&h.u32s(&tokens)?, &h.u32s(&pairs)?, &ids], 130).map_err(text)?;
    for pair in pairs.as_chunks::<2>().0 {
        expected[pair[0] as usize] = tokens[pair[1] as usize];
    }
    same("ids", &h.read_u32s(&ids, count)?, &expected)
}

/// Biases, penalties and forbidden tokens of some rows, twice: the second time the device is told only what came since, and one slot has a
/// new owner.
pub fn penalties(h: &mut Harness<'_>) -> Result<(), String> {
    let (vocab, rows) = (2500, 3);
    let seen = h.output(5 * vocab * 4)?;
    let mut histories: Vec<History> = Vec::new();
    for slots in [[4_u32, 0, 2], [4, 0, 3]] {
        let logits = h.random.normals(rows * vocab, 2.0);
        let (mut expected, mut noted) = (logits.clone(), Vec::new());
        let (mut biases, mut forbidden, mut penalised) = (Vec::new(), Vec::new(), Vec::new());
        let is_first = histories.is_empty();
        for row in 0..rows {
            let order = h.random.permutation(vocab);
            let is_new = is_first || row == 2;
            if is_new {
                histories.truncate(row);
                histories.push(History::new(&order[..20], 20));
            }
            let history = &mut histories[row];
            let before = history.output_len();
            for position in before..before + h.random.range(1, 60) {
                history.push(20 + position, order[h.random.range(10, 40)]);
            }
            let all: Vec<u32> = history.seen().map(|(token, _)| token).collect();
            let new: BTreeSet<u32> = history.output_from(before).iter().copied().collect();
            noted.extend(
                if is_new { all } else { new.into_iter().collect() }
                    .into_iter()
                    .map(|token| SeenToken {
                        slot: slots[row],
                        token,
                        count: history.count(token),
                    }),
            );
            let params = SamplingParams {
                repetition_penalty: 1.3,
                presence_penalty: 0.4,
                frequency_penalty: 0.15,
                logit_bias: order[5..60]
                    .iter()
                    .map(|token| (*token, h.random.normal(3.0)))
                    .collect(),
                bad_words: vec![vec![order[7]], vec![order[199]]],
                ..SamplingParams::default()
            };
            adjust(&mut expected[row * vocab..][..vocab], &params, history, 0);
            let changes = logit_changes(&params, history, 0, vocab);
            let edit = |token: u32, bias| LogitEdit {
                row: row as u32,
                token,
                bias,
            };
            biases.extend(changes.biases.iter().map(|(token, bias)| edit(*token, Some(*bias))));
            forbidden.extend(changes.forbidden.iter().map(|token| edit(*token, None)));
            penalised.push(PenaltyRow {
                row: row as u32,
                slot: slots[row],
                repetition: params.repetition_penalty,
                frequency: params.frequency_penalty,
                presence: params.presence_penalty,
            });
        }
        let fresh = if is_first { &slots[..] } else { &slots[2..] };
        let buffer = h.f32s(&logits)?;
        let edits = |edits: &[LogitEdit]| h.bytes(&edits.iter().flat_map(LogitEdit::to_bytes).collect::<Vec<u8>>());
        ops::edit_logits(h.device, [&buffer, &edits(&biases)?], biases.len(), vocab).map_err(text)?;
        ops::forget_seen(h.device, [&seen, &h.u32s(fresh)?], fresh.len(), vocab).map_err(text)?;
        let bytes: Vec<u8> = noted.iter().flat_map(SeenToken::to_bytes).collect();
        ops::note_seen(h.device, [&seen, &h.bytes(&bytes)?], noted.len(), vocab).map_err(text)?;
        let bytes: Vec<u8> = penalised.iter().flat_map(PenaltyRow::to_bytes).collect();
        ops::penalties(h.device, [&buffer, &seen, &h.bytes(&bytes)?], rows, vocab).map_err(text)?;
        ops::edit_logits(h.device, [&buffer, &edits(&forbidden)?], forbidden.len(), vocab).map_err(text)?;
        same("logits", &h.read_f32s(&buffer, rows * vocab)?, &expected)?;
    }
    Ok(())
}
