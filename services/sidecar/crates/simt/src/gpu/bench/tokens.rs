//! From logits to tokens.

use super::{Bench, Work, bytes_of};
use crate::suite::Random;
use kvasir_cuda::ops::{self, LogprobRow, LogprobToken, Logprobs, PenaltyRow, SampleRow};
use kvasir_cuda::{Buffer, DeviceError};

/// Most likely tokens told.
const TOP: usize = 20;

impl Bench<'_> {
    pub(super) fn tokens(&self, rows: usize) -> Result<(), DeviceError> {
        let vocab = self.size.config.vocab_size;
        let logits: Vec<u8> = Random::new(5)
            .normals(rows * vocab, 3.0)
            .iter()
            .flat_map(|x| x.to_ne_bytes())
            .collect();
        let (logits, tokens) = (self.uploaded(&logits)?, self.device.allocate(rows * 4)?);
        let shape = format!("{rows} rows");
        let read = Work::bytes(rows * vocab * 4);
        for (name, top_k, top_p) in [("sample", 0, 1.0), ("sample, top-k, top-p", 50, 0.9)] {
            let row = |row: u32| SampleRow {
                seed: 7,
                index: u64::from(row),
                row,
                temperature: 1.0,
                top_k,
                top_p,
                min_p: 0.0,
                typical_p: 0.0,
            };
            let chosen: Vec<SampleRow> = (0..rows as u32).map(row).collect();
            let rows_bytes: Vec<u8> = chosen.iter().flat_map(SampleRow::to_bytes).collect();
            let list = self.uploaded(&rows_bytes)?;
            self.line(name, &shape, read, || {
                ops::sample(self.device, [&logits, &list, &tokens], &chosen, vocab)
            })?;
        }
        self.restrictions(&logits, rows, &shape)?;
        let asked = |row: u32| LogprobRow {
            row,
            token: LogprobToken::Chosen(row),
        };
        let list: Vec<u8> = (0..rows as u32).flat_map(|row| asked(row).to_bytes()).collect();
        let [out, top_tokens, ranks] = [1 + TOP, TOP, 1].map(|words| self.device.allocate(rows * words * 4));
        let op = Logprobs {
            logits: &logits,
            rows: &self.uploaded(&list)?,
            chosen: &tokens,
            out: &out?,
            top_tokens: &top_tokens?,
            ranks: &ranks?,
            row_count: rows,
            vocab,
            top: TOP,
        };
        self.line(&format!("logprobs, top {TOP}"), &shape, read, || {
            ops::logprobs(self.device, &op)
        })?;
        Ok(())
    }

    /// Copies of all rows, which masks then change.
    fn restrictions(&self, logits: &Buffer, rows: usize, shape: &str) -> Result<(), DeviceError> {
        let vocab = self.size.config.vocab_size;
        let adjusted = self.device.allocate(rows * vocab * 4)?;
        let list = self.uploaded(&bytes_of(0..rows as u32))?;
        self.line("copy_rows", shape, Work::bytes(2 * rows * vocab * 4), || {
            ops::copy_rows(self.device, [logits, &adjusted, &list], rows, vocab)
        })?;
        // Whatever the noise counts, no token is unseen: no row costs more.
        let seen = self.filled(rows * vocab * 4)?;
        let penalised = |row: u32| PenaltyRow {
            row,
            slot: row,
            repetition: 1.1,
            frequency: 0.1,
            presence: 0.1,
        };
        let penalised: Vec<u8> = (0..rows as u32).flat_map(|row| penalised(row).to_bytes()).collect();
        let penalised = self.uploaded(&penalised)?;
        self.line("penalties", shape, Work::bytes(3 * rows * vocab * 4), || {
            ops::penalties(self.device, [&adjusted, &seen, &penalised], rows, vocab)
        })?;
        let pairs = self.uploaded(&bytes_of((0..rows as u32).flat_map(|row| [row, row])))?;
        let words = vocab.div_ceil(32);
        let mut random = Random::new(6);
        let bits = self.uploaded(&bytes_of((0..rows * words).map(|_| random.bits() as u32)))?;
        self.line("mask_rows", shape, Work::bytes(rows * (2 * vocab + words) * 4), || {
            ops::mask_rows(self.device, [logits, &adjusted, &pairs, &bits], rows, vocab)
        })?;
        Ok(())
    }
}
