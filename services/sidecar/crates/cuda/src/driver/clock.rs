//! Recorded work and its time on the device.

use super::{CudaDevice, failed};
use crate::device::DeviceError;
use cudarc::driver::CudaGraph;
use cudarc::driver::sys::{CUevent_flags, CUgraphInstantiate_flags, CUstreamCaptureMode};

/// Launches that were recorded once and run again as one.
pub struct Graph(CudaGraph);

impl Graph {
    /// Starts all of it.
    ///
    /// # Errors
    /// [`DeviceError::Failed`].
    pub fn launch(&self) -> Result<(), DeviceError> {
        self.0.launch().map_err(|error| failed("launching a graph", error))
    }
}

impl CudaDevice {
    /// Records what `work` launches instead of running it. It must have run once before, so that kernels are loaded, and must not allocate,
    /// read or write.
    ///
    /// # Errors
    /// [`DeviceError::Failed`], and what `work` fails with.
    pub fn record(&self, work: impl FnOnce() -> Result<(), DeviceError>) -> Result<Graph, DeviceError> {
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
