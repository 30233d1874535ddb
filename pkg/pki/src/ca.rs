//! A certificate authority on disk, and the leaves that it signs.

use crate::{PkiError, files};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use time::{Duration, OffsetDateTime};

const CA_DAYS: i64 = 3650;
/// An authority is renewed at a start when this much of its time is left.
const RENEW_CA_DAYS: i64 = 730;
const LEAF_DAYS: i64 = 365;
/// A leaf is renewed when this much of its time is left.
pub(crate) const RENEW_DAYS: i64 = 90;

/// What a leaf may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    Server,
    Client,
    Both,
}

/// What a leaf certificate says.
#[derive(Clone, Debug)]
pub struct Leaf<'a> {
    pub common_name: &'a str,
    pub organizations: &'a [&'a str],
    pub dns_names: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub usage: Usage,
}

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub cert_pem: String,
    pub key_pem: String,
}

/// A CA whose key lies on this machine.
pub struct CertAuthority {
    pub cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl CertAuthority {
    /// Loads `<dir>/<name>.crt` and `.key`, or makes them. One made here, whose time comes to its end, is renewed: with its key and
    /// its name, so that what it has signed stays valid, and who still has its old certificate knows the new ones' signatures.
    pub fn load_or_create(dir: &Path, name: &str) -> Result<Self, PkiError> {
        Self::load_or_create_at(dir, name, OffsetDateTime::now_utc())
    }

    fn load_or_create_at(dir: &Path, name: &str, now: OffsetDateTime) -> Result<Self, PkiError> {
        let cert_path = dir.join(format!("{name}.crt"));
        let key_path = dir.join(format!("{name}.key"));
        if let (Some(cert_pem), Some(key_pem)) = (files::read(&cert_path)?, files::read(&key_path)?) {
            let broken = |path: &PathBuf, what| PkiError::Broken { path: path.clone(), what };
            let key = KeyPair::from_pem(&key_pem).map_err(|_| broken(&key_path, "private key"))?;
            let ending = ends_soon(&cert_pem, now).map_err(|()| broken(&cert_path, "CA certificate"))?;
            match ending {
                Some((subject, begins)) if subject.starts_with(&own_name(name)) => {
                    // It begins when the old one did: the clock may be ahead, and right again tomorrow.
                    let renewed = Self::self_signed(subject, key, begins, now)?;
                    files::write_atomic(&cert_path, renewed.cert_pem.as_bytes(), 0o644)?;
                    tracing::info!(certificate = %cert_path.display(), "renewed the authority for ten years");
                    return Ok(renewed);
                }
                Some(_) => tracing::warn!(
                    certificate = %cert_path.display(),
                    "the authority's time comes to its end, and it was not made here: put a new certificate of its key there"
                ),
                None => {}
            }
            let issuer = Issuer::from_ca_cert_pem(&cert_pem, key).map_err(|_| broken(&cert_path, "CA certificate"))?;
            return Ok(CertAuthority { cert_pem, issuer });
        }
        let key = KeyPair::generate().map_err(|source| PkiError::Sign { name: name.to_owned(), source })?;
        // The time tells the CAs of two clusters apart in a user's trust store.
        let common_name = format!("{}{}", own_name(name), now.unix_timestamp_nanos() / 1000);
        let made = Self::self_signed(common_name, key, now - Duration::hours(1), now)?;
        // The key first: a certificate without its key would be taken for whole by nobody.
        files::write_atomic(&key_path, made.issuer.key().serialize_pem().as_bytes(), 0o600)?;
        files::write_atomic(&cert_path, made.cert_pem.as_bytes(), 0o644)?;
        Ok(made)
    }

    fn self_signed(
        common_name: String,
        key: KeyPair,
        begins: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<Self, PkiError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name.clone());
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = begins;
        params.not_after = now + Duration::days(CA_DAYS);
        let signed = params.self_signed(&key).map_err(|source| PkiError::Sign { name: common_name, source })?;
        Ok(CertAuthority { cert_pem: signed.pem(), issuer: Issuer::new(params, key) })
    }

    /// When its certificate ends, in seconds of the Unix epoch.
    pub fn expires(&self) -> Option<i64> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.cert_pem.as_bytes()).ok()?;
        Some(pem.parse_x509().ok()?.validity().not_after.timestamp())
    }

    /// Signs a new leaf with a new key.
    pub fn issue(&self, leaf: &Leaf<'_>) -> Result<Identity, PkiError> {
        self.issue_at(leaf, OffsetDateTime::now_utc())
    }

    fn issue_at(&self, leaf: &Leaf<'_>, now: OffsetDateTime) -> Result<Identity, PkiError> {
        let sign = |source| PkiError::Sign { name: leaf.common_name.to_owned(), source };
        let key = KeyPair::generate().map_err(sign)?;
        let mut params = CertificateParams::new(leaf.dns_names.clone()).map_err(sign)?;
        params.subject_alt_names.extend(leaf.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        params.distinguished_name = DistinguishedName::new();
        for o in leaf.organizations {
            params.distinguished_name.push(DnType::OrganizationName, *o);
        }
        params.distinguished_name.push(DnType::CommonName, leaf.common_name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match leaf.usage {
            Usage::Server => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Usage::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Usage::Both => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        params.use_authority_key_identifier_extension = true;
        // A device without a battery-backed clock may be behind: be valid a little earlier.
        params.not_before = now - Duration::hours(1);
        params.not_after = now + Duration::days(LEAF_DAYS);
        let cert = params.signed_by(&key, &self.issuer).map_err(sign)?;
        Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }

    /// Loads `<dir>/<name>.crt` and `.key` when they still fit `leaf`, or signs new ones.
    pub fn load_or_issue(&self, dir: &Path, name: &str, leaf: &Leaf<'_>) -> Result<Identity, PkiError> {
        self.load_or_issue_at(dir, name, leaf, OffsetDateTime::now_utc())
    }

    pub(crate) fn load_or_issue_at(
        &self,
        dir: &Path,
        name: &str,
        leaf: &Leaf<'_>,
        now: OffsetDateTime,
    ) -> Result<Identity, PkiError> {
        let cert_path = dir.join(format!("{name}.crt"));
        let key_path = dir.join(format!("{name}.key"));
        if let (Some(cert_pem), Some(key_pem)) = (files::read(&cert_path)?, files::read(&key_path)?)
            && self.still_fits(&cert_pem, leaf, now)
            && KeyPair::from_pem(&key_pem).is_ok()
        {
            return Ok(Identity { cert_pem, key_pem });
        }
        let identity = self.issue_at(leaf, now)?;
        files::write_atomic(&key_path, identity.key_pem.as_bytes(), 0o600)?;
        files::write_atomic(&cert_path, identity.cert_pem.as_bytes(), 0o644)?;
        Ok(identity)
    }

    /// Signed by this CA, begun, more than 90 days left, the same subject and at least the wanted names.
    fn still_fits(&self, cert_pem: &str, leaf: &Leaf<'_>, now: OffsetDateTime) -> bool {
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()) else { return false };
        let Ok(cert) = pem.parse_x509() else { return false };
        let Ok((_, ca_pem)) = x509_parser::pem::parse_x509_pem(self.cert_pem.as_bytes()) else { return false };
        let Ok(ca) = ca_pem.parse_x509() else { return false };
        if cert.validity().not_after.timestamp() - now.unix_timestamp() < RENEW_DAYS * 86_400
            || cert.validity().not_before.timestamp() > now.unix_timestamp()
            || cert.issuer() != ca.subject()
        {
            return false;
        }
        let cn = cert.subject().iter_common_name().filter_map(|a| a.as_str().ok()).next();
        if cn != Some(leaf.common_name) {
            return false;
        }
        let names: Vec<String> = match cert.subject_alternative_name() {
            Ok(Some(ext)) => ext.value.general_names.iter().filter_map(san_text).collect(),
            _ => Vec::new(),
        };
        leaf.dns_names.iter().all(|n| names.contains(n)) && leaf.ips.iter().all(|ip| names.contains(&ip.to_string()))
    }
}

/// How the names of authorities begin that are made here.
fn own_name(name: &str) -> String {
    format!("isopod-{name}@")
}

/// The subject's common name of an authority that is renewed soon, and when its time began.
fn ends_soon(cert_pem: &str, now: OffsetDateTime) -> Result<Option<(String, OffsetDateTime)>, ()> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).map_err(drop)?;
    let cert = pem.parse_x509().map_err(drop)?;
    if cert.validity().not_after.timestamp() - now.unix_timestamp() >= RENEW_CA_DAYS * 86_400 {
        return Ok(None);
    }
    let common_name = cert.subject().iter_common_name().filter_map(|a| a.as_str().ok()).next();
    Ok(Some((common_name.unwrap_or_default().to_owned(), cert.validity().not_before.to_datetime())))
}

fn san_text(name: &x509_parser::extensions::GeneralName<'_>) -> Option<String> {
    use x509_parser::extensions::GeneralName;
    match name {
        GeneralName::DNSName(n) => Some((*n).to_owned()),
        GeneralName::IPAddress(b) => match b.len() {
            4 => <[u8; 4]>::try_from(*b).ok().map(|b| IpAddr::from(b).to_string()),
            16 => <[u8; 16]>::try_from(*b).ok().map(|b| IpAddr::from(b).to_string()),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(names: &[&str]) -> Leaf<'static> {
        Leaf {
            common_name: "kube-apiserver",
            organizations: &[],
            dns_names: names.iter().map(|s| (*s).to_owned()).collect(),
            ips: vec![[127, 0, 0, 1].into()],
            usage: Usage::Server,
        }
    }

    #[test]
    fn a_leaf_is_kept_until_its_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertAuthority::load_or_create(dir.path(), "server-ca").unwrap();
        let first = ca.load_or_issue(dir.path(), "serving", &leaf(&["localhost"])).unwrap();
        // A second start: everything is loaded, not made again.
        let ca = CertAuthority::load_or_create(dir.path(), "server-ca").unwrap();
        let second = ca.load_or_issue(dir.path(), "serving", &leaf(&["localhost"])).unwrap();
        assert_eq!(first.cert_pem, second.cert_pem);
        let third = ca.load_or_issue(dir.path(), "serving", &leaf(&["localhost", "box"])).unwrap();
        assert_ne!(first.cert_pem, third.cert_pem);
    }

    #[test]
    fn a_leaf_of_another_ca_is_replaced() {
        let a = tempfile::tempdir().unwrap();
        let old = CertAuthority::load_or_create(a.path(), "ca").unwrap();
        let first = old.load_or_issue(a.path(), "serving", &leaf(&[])).unwrap();
        std::fs::remove_file(a.path().join("ca.crt")).unwrap();
        let new = CertAuthority::load_or_create(a.path(), "ca").unwrap();
        assert_ne!(first.cert_pem, new.load_or_issue(a.path(), "serving", &leaf(&[])).unwrap().cert_pem);
    }

    #[test]
    fn an_authority_is_renewed_with_its_key_and_name() {
        crate::tls::install_provider();
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let load = |days: i64| CertAuthority::load_or_create_at(dir.path(), "ca", now + Duration::days(days)).unwrap();
        let old = load(0);
        let mut of_client = leaf(&[]);
        of_client.usage = Usage::Client;
        let signed = old.issue(&of_client).unwrap();
        assert_eq!(load(CA_DAYS - RENEW_CA_DAYS - 1).cert_pem, old.cert_pem, "not before its time");
        let renewed = load(CA_DAYS - RENEW_CA_DAYS + 1);
        assert_ne!(renewed.cert_pem, old.cert_pem);
        assert_eq!(load(CA_DAYS).cert_pem, renewed.cert_pem, "written");
        let days = Duration::days(CA_DAYS - RENEW_CA_DAYS + 1).whole_seconds();
        assert_eq!(renewed.expires().unwrap() - old.expires().unwrap(), days);
        // A start with a clock that is years ahead does no harm, for what it has made is good today, too.
        let begins = |pem: &str| {
            let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            pem.parse_x509().unwrap().validity().not_before.timestamp()
        };
        assert_eq!(begins(&renewed.cert_pem), begins(&old.cert_pem));
        let issue =
            |days| renewed.load_or_issue_at(dir.path(), "leaf", &of_client, now + Duration::days(days)).unwrap();
        let ahead = issue(3000).cert_pem;
        assert_ne!(issue(0).cert_pem, ahead);
        // Each knows what the other has signed.
        let der = |pem: &str| x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents;
        for (authority, leaf) in [(&renewed, &signed), (&old, &renewed.issue(&of_client).unwrap())] {
            let verifier = crate::tls::client_verifier("ca", &authority.cert_pem).unwrap();
            verifier.verify_client_cert(&der(&leaf.cert_pem).into(), &[], rustls::pki_types::UnixTime::now()).unwrap();
        }
    }

    #[test]
    fn an_authority_of_somebody_else_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let now = OffsetDateTime::now_utc();
        let other =
            CertAuthority::self_signed("corporate root".to_owned(), KeyPair::generate().unwrap(), now, now).unwrap();
        std::fs::write(dir.path().join("ca.crt"), &other.cert_pem).unwrap();
        std::fs::write(dir.path().join("ca.key"), other.issuer.key().serialize_pem()).unwrap();
        let at = now + Duration::days(CA_DAYS - 1);
        assert_eq!(CertAuthority::load_or_create_at(dir.path(), "ca", at).unwrap().cert_pem, other.cert_pem);
    }

    #[test]
    fn keys_are_private_and_broken_files_are_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        CertAuthority::load_or_create(dir.path(), "ca").unwrap();
        let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.path().join("ca.key"), "garbage").unwrap();
        let err = CertAuthority::load_or_create(dir.path(), "ca").err().unwrap().to_string();
        assert!(err.contains("ca.key is not a valid private key"), "{err}");
    }
}
