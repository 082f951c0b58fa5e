//! Which blocks a step needs, asked before it begins.

use super::Engine;
use crate::plan::StepPlan;

/// Blocks of a step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlocksUsed {
    /// Read, and not written.
    pub read: Vec<u32>,
    /// Written, read too where they have earlier tokens.
    pub written: Vec<u32>,
}

impl Engine {
    /// The blocks that a step would read and write if it began now. The plan may be wrong: what it names that is not there is left out, or named
    /// as it is.
    pub fn blocks_used(&self, plan: &StepPlan) -> BlocksUsed {
        let mut used = BlocksUsed::default();
        let size = self.limits.block_size;
        for slice in &plan.slices {
            let start = plan.starts.iter().find(|start| start.sequence_id == slice.sequence_id);
            let table = match (start, self.sequences.get(&slice.sequence_id)) {
                (Some(start), _) => &start.block_ids,
                (None, Some(sequence)) => &sequence.blocks,
                (None, None) => continue,
            };
            let begin = slice.start_position as usize;
            let (first, end) = (begin / size, (begin + slice.token_count as usize).div_ceil(size));
            for (index, block) in table.iter().chain(&slice.appended_block_ids).take(end).enumerate() {
                let blocks = if index < first {
                    &mut used.read
                } else {
                    &mut used.written
                };
                blocks.push(*block);
            }
        }
        for placement in &plan.placements {
            let of = |table: &[u32], start: u32| {
                let (start, count) = (start as usize, placement.token_count as usize);
                let blocks = table.iter().take((start + count).div_ceil(size)).skip(start / size);
                blocks.copied().collect::<Vec<u32>>()
            };
            used.read
                .extend(of(&placement.source_block_ids, placement.source_start));
            used.written
                .extend(of(&placement.target_block_ids, placement.target_start));
        }
        used
    }
}
