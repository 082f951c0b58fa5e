//! `kvasir-sidecar certificates`: a small certificate authority in a directory, for clusters without one of their own.
//!
//! Its key and those it makes are P-256. `ca.pem` and `ca.key` are made once; every call makes new certificates for the identities asked for,
//! as `ID.pem` and `ID.key`. Files replace older ones in one step, so that a process that reloads never reads half of one.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

use crate::cli::CertificateFlags;
use crate::identity::Identity;
use crate::serve::Fatal;

/// The clocks of machines differ.
const BACKDATED: Duration = Duration::from_secs(3_600);
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 86_400);
const SECRET: u32 = 0o600;
const PUBLIC: u32 = 0o644;

/// Makes what is asked for.
///
/// # Errors
/// What cannot be read or written, with its path.
pub fn certificates(flags: &CertificateFlags) -> Result<(), Fatal> {
    let authority = Authority::open(&flags.dir)?;
    let lifetime = Duration::from_secs(flags.hours * 3_600);
    for identity in &flags.identity {
        authority.issue(identity, &flags.host, lifetime)?;
    }
    Ok(())
}

/// A certificate authority whose files lie in one directory.
pub struct Authority<'a> {
    directory: &'a Path,
    issuer: Issuer<'static, KeyPair>,
}

impl<'a> Authority<'a> {
    /// The authority in a directory, made when there is none.
    ///
    /// # Errors
    /// What cannot be read or written, with its path.
    pub fn open(directory: &'a Path) -> Result<Self, Fatal> {
        let at = |error: std::io::Error| format!("cannot keep certificates in {}: {error}", directory.display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(at)?;
        let (key_path, certificate_path) = (directory.join("ca.key"), directory.join("ca.pem"));
        if key_path.exists() && certificate_path.exists() {
            let key = KeyPair::from_pem(&fs::read_to_string(&key_path).map_err(at)?)
                .map_err(|error| format!("{} is no private key: {error}", key_path.display()))?;
            // The name and the key are all that signing takes from the authority's certificate.
            let params = authority_params(&key);
            return Ok(Self {
                directory,
                issuer: Issuer::new(params, key),
            });
        }
        let key = KeyPair::generate()?;
        let params = authority_params(&key);
        replace(&key_path, &key.serialize_pem(), SECRET)?;
        replace(&certificate_path, &params.self_signed(&key)?.pem(), PUBLIC)?;
        Ok(Self {
            directory,
            issuer: Issuer::new(params, key),
        })
    }

    /// Writes a new key and certificate for an identity, valid for servers and clients at these hosts (names or addresses).
    ///
    /// # Errors
    /// A host that is none, or a file that cannot be written.
    pub fn issue(&self, identity: &Identity, hosts: &[String], lifetime: Duration) -> Result<(), Fatal> {
        let mut params = CertificateParams::new(hosts)?;
        params
            .subject_alt_names
            .push(SanType::URI(Ia5String::try_from(identity.uri())?));
        params.distinguished_name.push(DnType::CommonName, identity.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, lifetime);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        replace(
            &self.directory.join(format!("{}.key", identity.id)),
            &key.serialize_pem(),
            SECRET,
        )?;
        replace(
            &self.directory.join(format!("{}.pem", identity.id)),
            &certificate.pem(),
            PUBLIC,
        )
    }
}

/// Named after its key: a peer that trusts another authority says so, instead of finding a bad signature.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let key_name: String = params
        .key_identifier(key)
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Kvasir certificate authority {key_name}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, AUTHORITY_LIFETIME);
    params
}

fn set_validity(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + lifetime).into();
}

/// Writes beside and renames. The mode is there before the content.
fn replace(path: &Path, content: &str, mode: u32) -> Result<(), Fatal> {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let write = || {
        let _ = fs::remove_file(&beside);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&beside)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_authority_stays_and_keys_are_for_their_owner() {
        let home = tempfile::tempdir().expect("a temporary directory");
        let directory = home.path().join("tls");
        let identity = "decode/d0".parse().expect("an identity");
        let issue = || {
            let authority = Authority::open(&directory).expect("an authority");
            authority
                .issue(&identity, &["127.0.0.1".into()], Duration::from_secs(60))
                .expect("a certificate");
            ["ca.pem", "ca.key", "d0.pem", "d0.key"].map(|name| fs::read(directory.join(name)).expect("a file"))
        };
        let (first, second) = (issue(), issue());
        assert_eq!((&first[0], &first[1]), (&second[0], &second[1]));
        assert!(first[2] != second[2] && first[3] != second[3]);
        let mode = |path: &Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
        assert_eq!(mode(&directory), 0o700);
        for name in ["ca.key", "d0.key"] {
            assert_eq!(mode(&directory.join(name)), 0o600, "{name}");
        }
        assert_eq!(fs::read_dir(&directory).expect("a directory").count(), 4);
    }

    #[test]
    fn a_broken_authority_is_told_and_left_alone() {
        let home = tempfile::tempdir().expect("a temporary directory");
        for name in ["ca.key", "ca.pem"] {
            fs::write(home.path().join(name), "not PEM").expect("a file");
        }
        let error = Authority::open(home.path()).err().expect("it is refused").to_string();
        assert!(error.contains("ca.key is no private key"), "{error}");
        assert_eq!(
            fs::read_to_string(home.path().join("ca.key")).expect("a file"),
            "not PEM"
        );
    }
}
