//! Tickets: claims signed by the worker with a key that only it and this sidecar hold.

use hmac::{Hmac, KeyInit, Mac};
use prost::Message;
use sha2::Sha256;

use crate::errors::CallError;
use crate::proto::transfer::{Ticket, TicketClaims};

/// Length of lease ids, scopes and fingerprints.
pub const ID_BYTES: usize = 16;

/// HMAC-SHA256 key of one incarnation of a worker.
#[derive(Clone)]
pub struct TicketKey([u8; 32]);

impl TicketKey {
    /// Wraps key bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Parses 64 hex digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let text = text.as_bytes();
        let mut key = [0; 32];
        if text.len() != 64 {
            return None;
        }
        for (byte, pair) in key.iter_mut().zip(text.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(key))
    }

    fn mac(&self, claims: &[u8]) -> Hmac<Sha256> {
        // HMAC pads a short key with zeros to SHA-256's block of 64 bytes.
        let mut block = [0; 64];
        block[..32].copy_from_slice(&self.0);
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&block.into());
        mac.update(claims);
        mac
    }

    /// Signs claims, as the worker does.
    pub fn sign(&self, claims: &TicketClaims) -> Ticket {
        let claims = claims.encode_to_vec();
        let mac = self.mac(&claims).finalize().into_bytes().to_vec();
        Ticket { claims, mac }
    }

    /// The claims of a ticket that is ours and not over. The signature is compared in constant time, before anything is parsed.
    ///
    /// # Errors
    /// [`CallError::LeaseExpired`] for a bad signature or a passed expiry, [`CallError::StaleEpoch`] for another incarnation's.
    pub fn verify(&self, ticket: &Ticket, epoch: u64, now_unix_ms: u64) -> Result<TicketClaims, CallError> {
        if self.mac(&ticket.claims).verify_slice(&ticket.mac).is_err() {
            return Err(CallError::LeaseExpired(
                "the ticket was not signed by this incarnation; ask for a new one".into(),
            ));
        }
        let claims = TicketClaims::decode(ticket.claims.as_slice())
            .map_err(|error| CallError::LeaseExpired(format!("the ticket cannot be read: {error}")))?;
        if claims.source_epoch != epoch {
            let found = claims.source_epoch;
            let message = format!("the ticket is of epoch {found}, this sidecar is epoch {epoch}; ask for a new one");
            return Err(CallError::StaleEpoch(message));
        }
        if claims.expires_at_unix_ms <= now_unix_ms {
            let late = now_unix_ms - claims.expires_at_unix_ms;
            return Err(CallError::LeaseExpired(format!(
                "the ticket expired {late} ms ago; ask for a new one"
            )));
        }
        Ok(claims)
    }
}

/// Checks the length of an id.
///
/// # Errors
/// [`CallError::InvalidRequest`].
pub fn id(field: &'static str, bytes: &[u8]) -> Result<[u8; ID_BYTES], CallError> {
    bytes.try_into().map_err(|_| CallError::InvalidRequest {
        field: field.into(),
        message: format!("has {} bytes; give {ID_BYTES}", bytes.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ticket() -> (TicketKey, Ticket) {
        let key = TicketKey::new([7; 32]);
        let claims = TicketClaims {
            lease_id: vec![1; 16],
            source_epoch: 3,
            token_end: 99,
            expires_at_unix_ms: 1_000,
            ..TicketClaims::default()
        };
        let ticket = key.sign(&claims);
        (key, ticket)
    }

    #[test]
    fn it_lapses_at_its_expiry() {
        let (key, ticket) = ticket();
        assert_eq!(key.verify(&ticket, 3, 999).map(|claims| claims.token_end), Ok(99));
        assert!(matches!(key.verify(&ticket, 3, 1_000), Err(CallError::LeaseExpired(_))));
        assert!(matches!(key.verify(&ticket, 4, 0), Err(CallError::StaleEpoch(_))));
    }

    proptest! {
        #[test]
        fn any_altered_bit_is_refused(at in 0usize..1000, bit in 0u8..8) {
            let (key, mut ticket) = ticket();
            let claims = ticket.claims.len();
            let at = at % (claims + ticket.mac.len());
            if at < claims { ticket.claims[at] ^= 1 << bit } else { ticket.mac[at - claims] ^= 1 << bit }
            prop_assert!(key.verify(&ticket, 3, 0).is_err());
        }
    }

    #[test]
    fn keys_are_64_hex_digits() {
        assert!(TicketKey::from_hex(&"0f".repeat(32)).is_some());
        assert!(TicketKey::from_hex("0f").is_none());
        assert!(TicketKey::from_hex(&"zz".repeat(32)).is_none());
    }
}
