//! Passes of decode rows, recorded and run again: a few hundred launches for the price of one.

use crate::device::{Device, DeviceError, Recording};
use crate::step_plan::DecodeShape;
use std::collections::HashMap;

/// Recordings that are kept: batch sizes times powers of two of the context's partitions.
const KEPT_MAX: usize = 256;

/// Recordings by shape. All that differs between two passes of one shape lies in memory that both read at the same places.
#[derive(Default)]
pub struct Graphs {
    recordings: HashMap<DecodeShape, Option<Box<dyn Recording>>>,
}

impl Graphs {
    /// Runs `work` itself the first time, which prepares what it needs; records it the second; replays it then.
    ///
    /// # Errors
    /// What `work`, the recording or the replay fails with.
    pub fn run(
        &mut self,
        device: &dyn Device,
        shape: DecodeShape,
        work: &mut dyn FnMut() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        match self.recordings.get(&shape) {
            Some(Some(recording)) => recording.replay(),
            Some(None) => {
                let recording = device.record(work)?;
                recording.replay()?;
                self.recordings.insert(shape, Some(recording));
                Ok(())
            }
            None => {
                if self.recordings.len() >= KEPT_MAX {
                    self.forget();
                }
                work()?;
                self.recordings.insert(shape, None);
                Ok(())
            }
        }
    }

    /// Memory moved: what was recorded names places that are gone.
    pub fn forget(&mut self) {
        self.recordings.clear();
    }
}
