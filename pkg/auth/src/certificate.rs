//! Client certificates: the common name is the user, the organizations are the groups
//! (`apiserver/pkg/authentication/request/x509`, `CommonNameUserConversion`). The TLS layer has verified the chain.

use isopod_api::UserInfo;
use sha2::{Digest, Sha256};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::Oid;
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("the client certificate cannot be read")]
    Malformed(#[source] x509_parser::asn1_rs::Err<x509_parser::error::X509Error>),
    #[error("PEM block type must be CERTIFICATE REQUEST")]
    NoRequest,
    #[error("the certificate signing request cannot be read")]
    MalformedRequest(#[source] x509_parser::asn1_rs::Err<x509_parser::error::X509Error>),
}

/// The attribute of the subject that holds the user's uid (`AllowParsingUserUIDFromCertAuth`).
const UID_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 57683, 2];

const CREDENTIAL_PREFIX: &str = "X509SHA256=";

/// Who a verified client certificate is. `None`: it has no common name, so it names nobody.
pub fn identity(der: &[u8]) -> Result<Option<UserInfo>, CertificateError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(CertificateError::Malformed)?;
    let subject = certificate.subject();
    let Some(name) = common_name(subject).filter(|cn| !cn.is_empty()) else { return Ok(None) };
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    let mut user = UserInfo { name: name.to_owned(), groups, ..Default::default() };
    if let Ok(uid_oid) = Oid::from(UID_OID) {
        let uid = subject.iter_by_oid(&uid_oid).next().and_then(|a| a.as_str().ok());
        user.uid = uid.unwrap_or_default().to_owned();
    }
    let id = format!("{CREDENTIAL_PREFIX}{}", hex(&Sha256::digest(der)));
    user.extra.insert(crate::token::CREDENTIAL_ID.to_owned(), vec![id]);
    Ok(Some(user))
}

/// Until when a certificate is good, in seconds since 1970.
pub fn not_after(der: &[u8]) -> Option<i64> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate.validity().not_after.timestamp())
}

/// Whether a certificate has told who a user is.
pub fn names(user: &UserInfo) -> bool {
    let ids = user.extra.get(crate::token::CREDENTIAL_ID);
    ids.is_some_and(|ids| ids.iter().any(|id| id.starts_with(CREDENTIAL_PREFIX)))
}

/// The common name that a certificate signing request asks for, `""` if none. `pem`: as in `spec.request`, without its base64.
pub fn requested_name(pem: &[u8]) -> Result<String, CertificateError> {
    with_subject(pem, |subject| common_name(subject).unwrap_or_default().to_owned())
}

/// The organizations that a certificate signing request asks for: groups, when a client's certificate is made of it.
pub fn requested_groups(pem: &[u8]) -> Result<Vec<String>, CertificateError> {
    with_subject(pem, |subject| {
        subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect()
    })
}

/// Of several the last, as Go's `crypto/x509` has it, and who signs certificates.
fn common_name<'a>(subject: &'a X509Name<'_>) -> Option<&'a str> {
    subject.iter_common_name().last().and_then(|name| name.as_str().ok())
}

fn with_subject<T>(pem: &[u8], read: impl FnOnce(&X509Name) -> T) -> Result<T, CertificateError> {
    let block = parse_x509_pem(pem).ok().map(|(_, block)| block).filter(|b| b.label == "CERTIFICATE REQUEST");
    let block = block.ok_or(CertificateError::NoRequest)?;
    let (_, request) =
        X509CertificationRequest::from_der(&block.contents).map_err(CertificateError::MalformedRequest)?;
    Ok(read(&request.certification_request_info.subject))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn certificate(name: Option<&str>, organizations: &[&str]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(name) = name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        for o in organizations {
            params.distinguished_name.push(DnType::OrganizationName, *o);
        }
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn a_signing_request_names_whom_it_is_for() {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "system:node:a");
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        let request = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
        assert_eq!(requested_name(request.as_bytes()).unwrap(), "system:node:a");
        assert_eq!(requested_groups(request.as_bytes()).unwrap(), ["system:nodes"]);
        assert!(matches!(requested_name(b"nothing"), Err(CertificateError::NoRequest)));
        let broken = "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n";
        assert!(matches!(requested_name(broken.as_bytes()), Err(CertificateError::MalformedRequest(_))));
    }

    /// A node must not get another's certificate by naming itself first.
    #[test]
    fn of_two_names_the_last_counts() {
        assert_eq!(requested_name(include_bytes!("two_names.csr")).unwrap(), "system:node:other");
    }

    #[test]
    fn names_and_groups() {
        let user = identity(&certificate(Some("system:node:a"), &["system:nodes"])).unwrap().unwrap();
        assert_eq!((user.name.as_str(), user.uid.as_str()), ("system:node:a", ""));
        assert_eq!(user.groups, ["system:nodes"]);
        let id = &user.extra["authentication.kubernetes.io/credential-id"][0];
        assert!(id.starts_with("X509SHA256=") && id.len() == 11 + 64, "{id}");
        assert!(identity(&certificate(None, &["x"])).unwrap().is_none());
        assert!(identity(b"no certificate").is_err());
    }
}
