//! Mutual TLS of the KV plane: certificates from files, read again when they change, and who is at the other end.
//!
//! TLS 1.3 only, without resumption: each connection is checked against the authority of now. Peers are known by the identity in their
//! certificate ([`crate::identity`]), never by host name, since addresses come from membership.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::ring::{cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, ServerConfig, SignatureScheme, version::TLS13,
};
use rustls::{ConnectionCommon, SupportedCipherSuite};
use tokio::io::BufReader;
use tokio::net::TcpStream;

use crate::cli::TlsFlags;
use crate::exports::lock;
use crate::identity::{Identity, PeerRole, role_list};
use crate::serve::Fatal;

const HTTP2: &[u8] = b"h2";
/// The fastest first, where processors have AES: KV is gigabytes.
const CIPHER_SUITES: &[SupportedCipherSuite] = &[
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];
/// Rustls reads 4 KiB at a time and writes at most 64 KiB unless told otherwise: too many system calls for KV.
const SOCKET_BUFFER_BYTES: usize = 256 << 10;

/// A connection whose reads come in large pieces.
pub type Buffered = BufReader<TcpStream>;

/// What TLS reads from and writes to.
pub fn buffered(stream: TcpStream) -> Buffered {
    BufReader::with_capacity(SOCKET_BUFFER_BYTES, stream)
}

/// Lets a session write in large pieces.
pub fn enlarge_writes<Data>(session: &mut ConnectionCommon<Data>) {
    session.set_buffer_limit(Some(SOCKET_BUFFER_BYTES));
}

/// Where a process's certificates lie, as PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl TlsFiles {
    /// What the flags name: nothing, or all three.
    ///
    /// # Errors
    /// When some are missing.
    pub fn from_flags(flags: &TlsFlags) -> Result<Option<Self>, Fatal> {
        match (&flags.tls_ca, &flags.tls_cert, &flags.tls_key) {
            (None, None, None) => Ok(None),
            (Some(ca), Some(certificate), Some(key)) => Ok(Some(Self {
                ca: ca.clone(),
                certificate: certificate.clone(),
                key: key.clone(),
            })),
            _ => Err("mutual TLS takes --tls-ca, --tls-cert and --tls-key together".into()),
        }
    }

    /// Changes whenever a file does.
    fn stamp(&self) -> Option<[(u64, i64, i64, u64); 3]> {
        let of = |path: &PathBuf| {
            let facts = fs::metadata(path).ok()?;
            Some((facts.ino(), facts.mtime(), facts.mtime_nsec(), facts.size()))
        };
        Some([of(&self.ca)?, of(&self.certificate)?, of(&self.key)?])
    }
}

/// What one state of the files gives.
pub struct TlsConfigs {
    /// For connections that come.
    pub server: Arc<ServerConfig>,
    /// For connections to sources.
    pub client: Arc<ClientConfig>,
}

struct Loaded {
    stamp: Option<[(u64, i64, i64, u64); 3]>,
    configs: Arc<TlsConfigs>,
}

/// Certificates in use.
pub struct Tls {
    files: TlsFiles,
    own: Identity,
    loaded: Mutex<Loaded>,
}

/// Who may serve KV.
const SOURCE_ROLES: &[PeerRole] = &[PeerRole::Prefill, PeerRole::Decode, PeerRole::Mixed, PeerRole::Store];

impl Tls {
    /// Loads the files of a process that is `own`.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(files: TlsFiles, own: Identity) -> Result<Self, Fatal> {
        let stamp = files.stamp();
        let configs = Arc::new(configs(&files, &own)?);
        Ok(Self {
            files,
            own,
            loaded: Mutex::new(Loaded { stamp, configs }),
        })
    }

    /// What a new connection uses: the files as they are now, or what was read last while they cannot be used.
    pub fn current(&self) -> Arc<TlsConfigs> {
        let mut loaded = lock(&self.loaded);
        let stamp = self.files.stamp();
        if stamp != loaded.stamp {
            match configs(&self.files, &self.own) {
                Ok(configs) => {
                    tracing::info!(certificate = %self.files.certificate.display(), "certificates were read again");
                    loaded.configs = Arc::new(configs);
                }
                Err(error) => tracing::warn!(%error, "changed certificates cannot be used; the former ones stay"),
            }
            loaded.stamp = stamp;
        }
        Arc::clone(&loaded.configs)
    }
}

fn configs(files: &TlsFiles, own: &Identity) -> Result<TlsConfigs, Fatal> {
    let provider = Arc::new(CryptoProvider {
        cipher_suites: CIPHER_SUITES.to_vec(),
        ..default_provider()
    });
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&files.ca)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{}: {error}", files.ca.display()))?;
    }
    let roots = Arc::new(roots);
    let chain = certificates(&files.certificate)?;
    match chain.first().map(identity_of) {
        Some(Ok(found)) if found == *own => {}
        Some(Ok(found)) => {
            let path = files.certificate.display();
            return Err(
                format!("{path} is the certificate of {found}, this is {own}; give --tls-cert of its own").into(),
            );
        }
        Some(Err(error)) => return Err(format!("{}: {error}", files.certificate.display()).into()),
        None => return Err(format!("{} holds no certificate", files.certificate.display()).into()),
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| format!("{}: {error}", files.key.display()))?;
    let mismatch = |error: rustls::Error| {
        let (certificate, key) = (files.certificate.display(), files.key.display());
        format!("{certificate} and {key} do not fit each other: {error}")
    };

    let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build()?;
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain.clone(), key.clone_key())
        .map_err(mismatch)?;
    server.alpn_protocols = vec![HTTP2.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;

    let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SourceVerifier { roots, provider }))
        .with_client_auth_cert(chain, key)
        .map_err(mismatch)?;
    client.alpn_protocols = vec![HTTP2.to_vec()];
    client.resumption = Resumption::disabled();
    client.enable_sni = false;
    Ok(TlsConfigs {
        server: Arc::new(server),
        client: Arc::new(client),
    })
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, Fatal> {
    let failed = |error| format!("{}: {error}", path.display());
    let found = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    if found.is_empty() {
        return Err(format!("{} holds no certificate", path.display()).into());
    }
    Ok(found)
}

/// The identity in a certificate: it has exactly one URI name.
///
/// # Errors
/// Why it has none.
pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, String> {
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|error| format!("not a certificate: {error}"))?;
    let mut uris = parsed.valid_uri_names();
    match (uris.next(), uris.next()) {
        (Some(uri), None) => {
            Identity::from_uri(uri).ok_or_else(|| format!("its URI name {uri} is not spiffe://kvasir/ROLE/ID"))
        }
        (None, _) => Err("it has no URI name spiffe://kvasir/ROLE/ID".into()),
        _ => Err("it has more than one URI name".into()),
    }
}

/// Trusts what the authority signed and whose role serves KV, whatever its host.
#[derive(Debug)]
struct SourceVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for SourceVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let refused = |message: String| rustls::Error::Other(OtherError(Arc::from(Fatal::from(message))));
        let found = identity_of(end_entity).map_err(refused)?;
        if !SOURCE_ROLES.contains(&found.role) {
            return Err(refused(format!(
                "expected role {}, found {found}",
                role_list(SOURCE_ROLES)
            )));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
