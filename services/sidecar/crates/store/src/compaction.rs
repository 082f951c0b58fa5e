//! Getting back what removed and replaced records take: what still counts in a segment is copied to the active one, then its file goes.
//!
//! Every copy is durable and the index points at it before the file is removed, so a crash at any point leaves at least one whole copy; two
//! have the same bytes. Removals are carried along while an older segment may still hold what they removed, but not those of keys that were
//! put again since: the log's order would turn.

use crate::aligned::AlignedBuffer;
use crate::index::Location;
use crate::object::Key;
use crate::record::{Header, Kind};
use crate::recovery::{location, records_of, remove_files, removed_keys};
use crate::stats::add;
use crate::writer::{GROUP_BYTES, Writer};

/// A segment that is being emptied.
#[derive(Default)]
pub(crate) struct Compaction {
    /// Segments with a smaller live share are emptied. Larger: less space lost; smaller: fewer bytes copied.
    live_share_max: f64,
    victim: Option<Victim>,
    /// The last turn freed nothing: no use to try again before something else changes.
    stalled: bool,
    buffer: AlignedBuffer,
}

struct Victim {
    id: u32,
    /// Records left to copy, last first.
    left: Vec<(Header, Location)>,
    removed: Vec<Key>,
}

impl Compaction {
    /// Empties segments below this share.
    pub fn below(live_share_max: f64) -> Self {
        Self {
            live_share_max,
            ..Self::default()
        }
    }
}

impl Writer {
    /// Whether there is something to do when nobody asks for anything.
    pub(crate) fn has_compaction_work(&self) -> bool {
        self.compaction.victim.is_some() || self.next_victim().is_some()
    }

    /// Something was written or removed, so that a compaction that was stuck may go on.
    pub(crate) fn resume_compaction(&mut self) {
        self.compaction.stalled = false;
    }

    fn next_victim(&self) -> Option<u32> {
        if self.compaction.stalled {
            return None;
        }
        let tables = self.shared.lock();
        let is_tight = tables.file_bytes() + 2 * self.segment_bytes > self.capacity_bytes;
        // When space is short, a segment is emptied if that gives back anything worth a copy.
        let live_share_max = if is_tight {
            self.compaction.live_share_max.max(0.9)
        } else {
            self.compaction.live_share_max
        };
        tables.emptiest(live_share_max)
    }

    /// At most one group's worth, so that nobody waits long.
    pub(crate) fn compact_some(&mut self) {
        if self.compaction.victim.is_none() {
            self.compaction.victim = self.next_victim().and_then(|id| self.begin(id));
        }
        let Some(mut victim) = self.compaction.victim.take() else {
            return;
        };
        let mut buffer = std::mem::take(&mut self.compaction.buffer);
        while self.group_bytes() < GROUP_BYTES {
            let Some((header, from)) = victim.left.pop() else { break };
            if self.copy_one(&header, from, &mut buffer).is_err() {
                // No room for the copy. The block goes, so that the segment's space comes back.
                self.remove(&[header.key]);
            }
        }
        self.compaction.buffer = buffer;
        self.commit();
        if victim.left.is_empty() {
            self.finish(victim);
        } else {
            self.compaction.victim = Some(victim);
        }
    }

    fn begin(&mut self, id: u32) -> Option<Victim> {
        let tables = self.shared.lock();
        let state = tables.segments.get(&id)?;
        let (segment, file_bytes) = (std::sync::Arc::clone(&state.segment), state.file_bytes);
        drop(tables);
        let (mut left, mut removed) = (Vec::new(), Vec::new());
        for (offset, header) in records_of(&self.directory, &segment, file_bytes) {
            match header.kind {
                Kind::Value => left.push((header, location(id, offset, &header))),
                Kind::Removal => removed.extend(removed_keys(&segment, offset, &header)),
            }
        }
        left.reverse();
        Some(Victim { id, left, removed })
    }

    fn copy_one(
        &mut self,
        header: &Header,
        from: Location,
        buffer: &mut AlignedBuffer,
    ) -> Result<(), crate::StoreError> {
        let found = self.shared.lock().find(header.key);
        let Some((at, segment)) = found.filter(|(at, _)| *at == from) else {
            return Ok(());
        };
        match segment.read(at.offset, at.value_bytes, buffer) {
            Some((header, value)) => self.copy(&header, value, from),
            None => {
                add(&self.counters.damaged, 1);
                self.shared.lock().remove_at(header.key, from);
                Ok(())
            }
        }
    }

    fn finish(&mut self, victim: Victim) {
        let tables = self.shared.lock();
        let is_oldest = tables.segments.keys().next() == Some(&victim.id);
        // A copy that could not be made durable still points here.
        let is_empty = tables
            .segments
            .get(&victim.id)
            .is_none_or(|state| state.live_bytes == 0);
        let mut removed = victim.removed;
        removed.retain(|key| tables.index.get(*key).is_none());
        drop(tables);
        if !is_empty {
            self.compaction.stalled = true;
            return;
        }
        if !is_oldest && !removed.is_empty() {
            self.append_removal(&removed);
            self.commit();
        }
        // Should it fail, the next open finds the copies later in the log, and the file is emptied again.
        let _ = remove_files(&self.directory, victim.id);
        self.shared.lock().segments.remove(&victim.id);
    }
}
