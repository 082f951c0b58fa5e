//! Who a process is: its role and name, as its certificate says in a URI name, `spiffe://kvasir/ROLE/ID`.

use std::fmt;
use std::str::FromStr;

const PREFIX: &str = "spiffe://kvasir/";
const ID_CHARS_MAX: usize = 128;

/// What a process is for. A plane lets in the roles that have business there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerRole {
    /// Takes clients' requests.
    Gateway,
    /// Places them.
    Router,
    /// Computes prompts.
    Prefill,
    /// Generates.
    Decode,
    /// Does both.
    Mixed,
    /// Keeps KV beyond the workers' memory.
    Store,
    /// A person's tools.
    Operator,
    /// The cluster's Redis, which calls nobody.
    Redis,
}

const NAMES: [(PeerRole, &str); 8] = [
    (PeerRole::Gateway, "gateway"),
    (PeerRole::Router, "router"),
    (PeerRole::Prefill, "prefill"),
    (PeerRole::Decode, "decode"),
    (PeerRole::Mixed, "mixed"),
    (PeerRole::Store, "store"),
    (PeerRole::Operator, "operator"),
    (PeerRole::Redis, "redis"),
];

impl fmt::Display for PeerRole {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = NAMES.iter().find(|(role, _)| role == self).map_or("", |(_, name)| name);
        out.write_str(name)
    }
}

/// `decode or mixed`, for messages.
pub fn role_list(roles: &[PeerRole]) -> String {
    let names: Vec<String> = roles.iter().map(ToString::to_string).collect();
    names.join(" or ")
}

/// One process of the cluster. A sidecar has its worker's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// What it is for.
    pub role: PeerRole,
    /// Its name, unique in the cluster.
    pub id: String,
}

impl Identity {
    /// The identity in a certificate's URI name; None when the URI is not of ours.
    pub fn from_uri(uri: &str) -> Option<Self> {
        uri.strip_prefix(PREFIX)?.parse().ok()
    }

    /// The URI name of its certificate.
    pub fn uri(&self) -> String {
        format!("{PREFIX}{self}")
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.role, self.id)
    }
}

impl FromStr for Identity {
    type Err = String;

    /// Reads `ROLE/ID`.
    fn from_str(text: &str) -> Result<Self, String> {
        let known = |name: &str| NAMES.iter().find(|(_, known)| *known == name).map(|(role, _)| *role);
        let is_id = |id: &str| {
            (1..=ID_CHARS_MAX).contains(&id.len())
                && id
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        text.split_once('/')
            .and_then(|(role, id)| Some((known(role)?, id)))
            .filter(|(_, id)| is_id(id))
            .map(|(role, id)| Self { role, id: id.to_owned() })
            .ok_or_else(|| {
                let names = NAMES.map(|(_, name)| name).join(", ");
                format!("use ROLE/ID with a role of {names} and an id of 1 to {ID_CHARS_MAX} letters, digits, dots, dashes or underscores")
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_survives_its_uri() {
        let identity: Identity = "decode/decode-0".parse().expect("an identity");
        assert_eq!(identity.uri(), "spiffe://kvasir/decode/decode-0");
        assert_eq!(Identity::from_uri(&identity.uri()), Some(identity));
    }

    #[test]
    fn what_is_not_exactly_an_identity_is_none() {
        for uri in [
            "spiffe://kvasir/decode",
            "spiffe://kvasir/decode/",
            "spiffe://kvasir/decode/a/b",
            "spiffe://kvasir/decode/a b",
            "spiffe://kvasir/Decode/a",
            "spiffe://other/decode/a",
            "https://kvasir/decode/a",
            "xspiffe://kvasir/decode/a",
        ] {
            assert_eq!(Identity::from_uri(uri), None, "{uri}");
        }
    }
}
