//! Recorded work, and the device's own clock.

use super::{CudaDevice, failed};
use crate::device::{DeviceError, Recording};
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};

/// A recorded stream, instantiated.
pub(super) struct Graph(CudaGraph);

// SAFETY: its handles belong to the context, not to a thread; one owner launches it.
unsafe impl Send for Graph {}

impl Recording for Graph {
    fn replay(&self) -> Result<(), DeviceError> {
        self.0.launch().map_err(|error| failed("launching a graph", error))
    }
}

impl CudaDevice {
    /// What `work` launches, recorded by the stream instead of run.
    pub(super) fn graph(&self, work: &mut dyn FnMut() -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream
            .begin_capture(mode)
            .map_err(|error| failed("beginning a graph", error))?;
        let worked = work();
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0));
        worked?;
        match graph.map_err(|error| failed("ending a graph", error))? {
            Some(graph) => Ok(Graph(graph)),
            None => Err(DeviceError::Failed("nothing was recorded".into())),
        }
    }

    /// Milliseconds that the device takes for `work`, by its own events.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], and what `work` fails with.
    pub fn milliseconds(&self, work: impl FnOnce() -> Result<(), DeviceError>) -> Result<f64, DeviceError> {
        let mark = || {
            self.stream
                .record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))
                .map_err(|error| failed("an event", error))
        };
        let begin = mark()?;
        work()?;
        let end = mark()?;
        end.synchronize().map_err(|error| failed("the device's work", error))?;
        begin
            .elapsed_ms(&end)
            .map(f64::from)
            .map_err(|error| failed("an event's time", error))
    }
}
