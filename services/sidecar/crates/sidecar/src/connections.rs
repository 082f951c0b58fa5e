//! Channels to other sidecars.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::AsyncBufReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower_service::Service;

use crate::errors::{CallError, causes};
use crate::exports::lock;
use crate::http2;
use crate::tls::{Buffered, Tls, buffered};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Connections to other sidecars, one for each address, kept.
#[derive(Default)]
pub struct Connections {
    channels: Mutex<HashMap<String, Channel>>,
    tls: Option<Arc<Tls>>,
}

impl Connections {
    /// None yet; with mutual TLS when `tls` is given.
    pub fn new(tls: Option<Arc<Tls>>) -> Self {
        Self { tls, ..Self::default() }
    }

    /// The channel to an address, connected when there is none.
    ///
    /// # Errors
    /// [`CallError::InvalidRequest`] when it is no address, [`CallError::Unavailable`] when nobody we trust answers there.
    pub(crate) async fn to(&self, address: &str) -> Result<Channel, CallError> {
        if let Some(channel) = lock(&self.channels).get(address) {
            return Ok(channel.clone());
        }
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| CallError::InvalidRequest {
                field: "source".into(),
                message: format!("has the address {address:?}: {error}"),
            })?;
        let endpoint = http2::client(endpoint.connect_timeout(CONNECT_TIMEOUT));
        let connected = match &self.tls {
            None => endpoint.connect().await,
            Some(tls) => endpoint.connect_with_connector(Encrypted(Arc::clone(tls))).await,
        };
        let channel = connected.map_err(|error| {
            CallError::Unavailable(format!("cannot connect to the source at {address}: {}", causes(&error)))
        })?;
        lock(&self.channels).insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// A connection that failed is made anew next time.
    pub(crate) fn forget(&self, address: &str) {
        lock(&self.channels).remove(address);
    }
}

/// Connects with mutual TLS, each time with the certificates of now.
struct Encrypted(Arc<Tls>);

impl Service<Uri> for Encrypted {
    type Response = TokioIo<TlsStream<Buffered>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = TlsConnector::from(Arc::clone(&self.0.current().client));
        Box::pin(async move {
            let host = uri.host().unwrap_or_default();
            let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
            let stream = TcpStream::connect((bare.as_str(), uri.port_u16().unwrap_or_default())).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(bare).map_err(io::Error::other)?;
            let mut stream = connector.connect(name, buffered(stream)).await.map_err(plain_source)?;
            // In TLS 1.3 a client is through before the server has looked at its certificate. HTTP/2 servers speak first, so the first
            // bytes say that we are let in; else an alert comes, which here still has its name.
            stream.fill_buf().await?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// Says what a source without TLS looks like from here.
fn plain_source(error: io::Error) -> io::Error {
    let is_garbled = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        .is_some_and(|error| matches!(error, rustls::Error::InvalidMessage(_)));
    if is_garbled || error.kind() == io::ErrorKind::UnexpectedEof {
        let message = "it speaks no TLS; give the source --tls-ca, --tls-cert and --tls-key";
        return io::Error::new(error.kind(), message);
    }
    error
}
