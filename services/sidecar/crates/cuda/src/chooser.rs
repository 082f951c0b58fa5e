//! From logits on the device to tokens on the device; the host hears of them later.

use crate::device::{Buffer, Device, DeviceError, Fetch};
use crate::ops::{self, LogitEdit, LogprobRow, Logprobs, PenaltyRow, SampleRow, SeenToken};
use crate::read_plan::ReadPlan;
use crate::scratch::Room;
use crate::seen::SeenSlots;
use kvasir_engine::{Read, Reading};
use std::collections::VecDeque;

/// Readings under way, oldest first, and the memory of the newest.
#[derive(Default)]
pub struct Chooser {
    upload: Room,
    answers: Room,
    /// u32 `[slots, vocab]`.
    seen: Room,
    slots: SeenSlots,
    under_way: VecDeque<(ReadPlan, Box<dyn Fetch>)>,
    /// Which draw each reading of the newest is.
    draws: Vec<Option<u32>>,
}

impl Chooser {
    /// Starts reading `row_count` rows of logits, after which `logits` has room for as many copies.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Failed`].
    pub fn read(
        &mut self,
        device: &dyn Device,
        logits: &Buffer,
        readings: &[Reading<'_>],
        row_count: usize,
        vocab: usize,
    ) -> Result<(), DeviceError> {
        let plan = ReadPlan::new(readings, row_count, vocab, &mut self.slots);
        self.draws = plan.draws();
        let layout = plan.layout();
        let uploaded = self.upload(device, &plan)?;
        let [
            copies,
            forgotten,
            noted,
            biases,
            penalties,
            forbidden,
            masks,
            bits,
            samples,
            logprobs,
        ] = &uploaded;
        let adjusted = logits.part(4 * row_count * vocab, 4 * plan.copies.len() * vocab)?;
        ops::copy_rows(device, [logits, &adjusted, copies], plan.copies.len(), vocab)?;
        ops::edit_logits(device, [&adjusted, biases], plan.biases.len(), vocab)?;
        let seen = self.seen.at_least(device, 4 * plan.seen_slots * vocab)?;
        ops::forget_seen(device, [seen, forgotten], plan.seen.forgotten.len(), vocab)?;
        ops::note_seen(device, [seen, noted], plan.seen.noted.len(), vocab)?;
        ops::penalties(device, [&adjusted, seen, penalties], plan.penalties.len(), vocab)?;
        ops::edit_logits(device, [&adjusted, forbidden], plan.forbidden.len(), vocab)?;
        ops::mask_rows(device, [logits, &adjusted, masks, bits], plan.masks.len(), vocab)?;
        let answers = self.answers.at_least(device, layout.bytes)?;
        ops::sample(device, [logits, samples, answers], &plan.samples, vocab)?;
        let op = Logprobs {
            logits,
            rows: logprobs,
            chosen: answers,
            out: &answers.part(layout.logprobs, 0)?,
            top_tokens: &answers.part(layout.top_tokens, 0)?,
            ranks: &answers.part(layout.ranks, 0)?,
            row_count: plan.logprobs.len(),
            vocab,
            top: plan.top,
        };
        ops::logprobs(device, &op)?;
        // Without an answer to wait for, waiting is for the pass itself.
        let wanted = if plan.samples.is_empty() && plan.logprobs.is_empty() {
            0
        } else {
            layout.bytes
        };
        let fetch = device.fetch(answers, 0, wanted)?;
        self.under_way.push_back((plan, fetch));
        Ok(())
    }

    /// One upload, in parts that begin at multiples of 16 bytes.
    fn upload(&mut self, device: &dyn Device, plan: &ReadPlan) -> Result<[Buffer; 10], DeviceError> {
        let words = |words: &[u32]| -> Vec<u8> { words.iter().flat_map(|word| word.to_ne_bytes()).collect() };
        let parts: [Vec<u8>; 10] = [
            words(&plan.copies),
            words(&plan.seen.forgotten),
            plan.seen.noted.iter().flat_map(SeenToken::to_bytes).collect(),
            plan.biases.iter().flat_map(LogitEdit::to_bytes).collect(),
            plan.penalties.iter().flat_map(PenaltyRow::to_bytes).collect(),
            plan.forbidden.iter().flat_map(LogitEdit::to_bytes).collect(),
            words(plan.masks.as_flattened()),
            words(&plan.bits),
            plan.samples.iter().flat_map(SampleRow::to_bytes).collect(),
            plan.logprobs.iter().flat_map(LogprobRow::to_bytes).collect(),
        ];
        let mut bytes = Vec::new();
        let places = parts.map(|part| {
            let begin = bytes.len();
            bytes.extend_from_slice(&part);
            bytes.resize(bytes.len().next_multiple_of(16), 0);
            (begin, part.len())
        });
        let memory = self.upload.at_least(device, bytes.len())?;
        device.write(memory, 0, &bytes)?;
        let [a, b, c, d, e, f, g, h, i, j] = places.map(|(begin, length)| memory.part(begin, length));
        Ok([a?, b?, c?, d?, e?, f?, g?, h?, i?, j?])
    }

    /// Waits for the oldest.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], also for what failed before.
    pub fn collect(&mut self) -> Result<Vec<Read>, DeviceError> {
        let lost = || DeviceError::Failed("nothing was read".into());
        let (plan, fetch) = self.under_way.pop_front().ok_or_else(lost)?;
        let mut bytes = Vec::new();
        fetch.wait(&mut bytes)?;
        Ok(plan.answers(&bytes))
    }

    /// Whether [`Chooser::collect`] would not wait.
    pub fn is_ready(&self) -> bool {
        self.under_way.front().is_none_or(|(_, fetch)| fetch.is_done())
    }

    /// The tokens that the newest reading chose, and the place of reading `i` among them.
    ///
    /// # Errors
    /// [`DeviceError::Failed`] when it was no draw.
    pub fn chosen(&self, reading: usize) -> Result<(&Buffer, u32), DeviceError> {
        let lost = || DeviceError::Failed(format!("reading {reading} of the pass before chose no token"));
        let draw = self.draws.get(reading).copied().flatten().ok_or_else(lost)?;
        Ok((self.answers.get()?, draw))
    }
}
