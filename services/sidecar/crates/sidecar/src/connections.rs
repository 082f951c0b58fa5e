//! Channels to other sidecars.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use tonic::transport::{Channel, Endpoint};

use crate::errors::CallError;
use crate::exports::lock;
use crate::http2;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Connections to other sidecars, one for each address, kept.
#[derive(Default)]
pub struct Connections(Mutex<HashMap<String, Channel>>);

impl Connections {
    /// The channel to an address, connected when there is none.
    ///
    /// # Errors
    /// [`CallError::InvalidRequest`] when it is no address, [`CallError::Unavailable`] when nobody answers there.
    pub(crate) async fn to(&self, address: &str) -> Result<Channel, CallError> {
        if let Some(channel) = lock(&self.0).get(address) {
            return Ok(channel.clone());
        }
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).map_err(|error| CallError::InvalidRequest {
                field: "source_address".into(),
                message: format!("is {address}: {error}"),
            })?;
        let channel = http2::client(endpoint.connect_timeout(CONNECT_TIMEOUT))
            .connect()
            .await
            .map_err(|error| CallError::Unavailable(format!("cannot connect to the source at {address}: {error}")))?;
        lock(&self.0).insert(address.to_owned(), channel.clone());
        Ok(channel)
    }

    /// A connection that failed is made anew next time.
    pub(crate) fn forget(&self, address: &str) {
        lock(&self.0).remove(address);
    }
}
