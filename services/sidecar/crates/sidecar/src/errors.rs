//! How calls fail, and how that travels: a gRPC code and an `ErrorDetail` in the trailing metadata `kvasir-error-bin`.

use std::borrow::Cow;

use prost::Message;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::{Code, Status};

use crate::proto::common::{ErrorDetail, ErrorReason};

const METADATA_KEY: &str = "kvasir-error-bin";

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The caller is wrong.
    #[error("{field}: {message}")]
    InvalidRequest {
        /// Which field.
        field: Cow<'static, str>,
        /// What to mend.
        message: String,
    },
    /// The lease ran out, was released, or was never signed by us.
    #[error("{0}")]
    LeaseExpired(String),
    /// The message names an earlier incarnation.
    #[error("{0}")]
    StaleEpoch(String),
    /// KV of different models or shapes.
    #[error("{0}")]
    LayoutMismatch(String),
    /// A codec level that one side cannot have.
    #[error("{0}")]
    CodecMismatch(String),
    /// Bytes that are not what was sent.
    #[error("{0}")]
    DigestMismatch(String),
    /// No room now.
    #[error("{0}")]
    Overloaded(String),
    /// The peer is lost or busy with somebody else.
    #[error("{0}")]
    Unavailable(String),
    /// The time given is over.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// The caller's certificate does not let it in here.
    #[error("{0}")]
    PermissionDenied(String),
    /// The caller stopped it.
    #[error("{0}")]
    Cancelled(String),
    /// A second user of what has one.
    #[error("{0}")]
    Busy(String),
    /// A defect.
    #[error("{0}")]
    Internal(String),
}

impl CallError {
    fn reason(&self) -> (Code, ErrorReason) {
        match self {
            Self::InvalidRequest { .. } => (Code::InvalidArgument, ErrorReason::InvalidRequest),
            Self::LeaseExpired(_) => (Code::FailedPrecondition, ErrorReason::LeaseExpired),
            Self::StaleEpoch(_) => (Code::FailedPrecondition, ErrorReason::StaleEpoch),
            Self::LayoutMismatch(_) => (Code::FailedPrecondition, ErrorReason::LayoutMismatch),
            Self::CodecMismatch(_) => (Code::FailedPrecondition, ErrorReason::CodecMismatch),
            Self::DigestMismatch(_) => (Code::DataLoss, ErrorReason::DigestMismatch),
            Self::Overloaded(_) => (Code::ResourceExhausted, ErrorReason::Overloaded),
            Self::Unavailable(_) => (Code::Unavailable, ErrorReason::Unavailable),
            Self::DeadlineExceeded(_) => (Code::DeadlineExceeded, ErrorReason::DeadlineExceeded),
            Self::PermissionDenied(_) => (Code::PermissionDenied, ErrorReason::PermissionDenied),
            Self::Cancelled(_) => (Code::Cancelled, ErrorReason::Cancelled),
            Self::Busy(_) => (Code::FailedPrecondition, ErrorReason::Unavailable),
            Self::Internal(_) => (Code::Internal, ErrorReason::Internal),
        }
    }

    /// What a peer's status means here. A lost connection is `Unavailable`.
    pub fn from_status(status: &Status) -> Self {
        let detail = status
            .metadata()
            .get_bin(METADATA_KEY)
            .and_then(|value| value.to_bytes().ok())
            .and_then(|bytes| ErrorDetail::decode(bytes).ok());
        let message = match &detail {
            Some(detail) if !detail.message.is_empty() => detail.message.clone(),
            // The cause of a broken connection is behind the status: an alert of TLS, for one.
            _ => std::error::Error::source(status).map_or_else(|| status.message().to_owned(), causes),
        };
        match detail.as_ref().map(ErrorDetail::reason) {
            Some(ErrorReason::LeaseExpired) => Self::LeaseExpired(message),
            Some(ErrorReason::StaleEpoch) => Self::StaleEpoch(message),
            Some(ErrorReason::InvalidRequest) => {
                let field = detail.map(|detail| detail.field).unwrap_or_default();
                // Ours begins with the field again.
                let message = message
                    .strip_prefix(&format!("{field}: "))
                    .unwrap_or(&message)
                    .to_owned();
                Self::InvalidRequest {
                    field: field.into(),
                    message,
                }
            }
            Some(ErrorReason::LayoutMismatch) => Self::LayoutMismatch(message),
            Some(ErrorReason::CodecMismatch) => Self::CodecMismatch(message),
            Some(ErrorReason::DigestMismatch) => Self::DigestMismatch(message),
            Some(ErrorReason::Overloaded) => Self::Overloaded(message),
            Some(ErrorReason::DeadlineExceeded) => Self::DeadlineExceeded(message),
            Some(ErrorReason::PermissionDenied) => Self::PermissionDenied(message),
            Some(ErrorReason::Internal) => Self::Internal(message),
            _ => Self::Unavailable(format!("the peer is lost: {message}")),
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let (code, reason) = error.reason();
        let field = match &error {
            CallError::InvalidRequest { field, .. } => field.to_string(),
            _ => String::new(),
        };
        let message = error.to_string();
        let detail = ErrorDetail {
            reason: reason.into(),
            message: message.clone(),
            field,
            ..ErrorDetail::default()
        };
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(METADATA_KEY, BinaryMetadataValue::from_bytes(&detail.encode_to_vec()));
        Status::with_metadata(code, message, metadata)
    }
}

/// An error with what is behind it: tonic's own says only `transport error`.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_wire() {
        let text = || "what happened, and what to do".to_owned();
        for error in [
            CallError::InvalidRequest {
                field: "token_begin".into(),
                message: text(),
            },
            CallError::LeaseExpired(text()),
            CallError::StaleEpoch(text()),
            CallError::LayoutMismatch(text()),
            CallError::CodecMismatch(text()),
            CallError::DigestMismatch(text()),
            CallError::Overloaded(text()),
            CallError::DeadlineExceeded(text()),
            CallError::PermissionDenied(text()),
            CallError::Internal(text()),
        ] {
            assert_eq!(CallError::from_status(&Status::from(error.clone())), error);
        }
    }

    #[test]
    fn a_peer_that_stops_for_its_own_reasons_is_lost() {
        for error in [
            CallError::Unavailable("busy".into()),
            CallError::Cancelled("stopped".into()),
        ] {
            assert!(matches!(
                CallError::from_status(&Status::from(error)),
                CallError::Unavailable(_)
            ));
        }
    }

    #[test]
    fn a_bare_status_is_a_lost_peer() {
        let status = Status::unavailable("tcp connect error");
        assert!(matches!(CallError::from_status(&status), CallError::Unavailable(_)));
    }
}
