//! One set of transport settings for KV frames. The default HTTP/2 frame of 16 KiB halves the throughput; the receiver is who allows larger
//! ones, so both sides set it.

use std::time::Duration;

use tonic::transport::{Endpoint, Server};

/// Larger than any frame with its header.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

const HTTP2_FRAME_BYTES: u32 = 1 << 20;
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 32 << 20;
const PING_INTERVAL: Duration = Duration::from_secs(5);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Settings of the source.
pub fn server() -> Server {
    Server::builder()
        .max_frame_size(HTTP2_FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .tcp_nodelay(true)
}

/// Settings of the receiver.
pub fn client(endpoint: Endpoint) -> Endpoint {
    endpoint
        .max_frame_size(HTTP2_FRAME_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false)
        .tcp_nodelay(true)
}
