//! What a request for a certificate says.

use crate::PkiError;
use std::collections::BTreeMap;
use std::net::IpAddr;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::pem::parse_x509_pem;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

const LABEL: &str = "CERTIFICATE REQUEST";
pub const COMMON_NAME: u64 = 3;
pub const ORGANIZATION: u64 = 10;
const SERIAL_NUMBER: u64 = 5;
/// The attributes of X.520 (2.5.4) that a subject keeps, in the order in which it is written: country, province,
/// locality, street, postal code, organization, unit, common name, serial number. Of the last two there is one each.
pub(super) const ATTRIBUTES: [u64; 9] = [6, 8, 7, 9, 17, ORGANIZATION, 11, COMMON_NAME, SERIAL_NUMBER];

/// Who is to be certified: the values of each attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject(pub(super) BTreeMap<u64, Vec<String>>);

impl Subject {
    pub fn common_name(&self) -> &str {
        self.values(COMMON_NAME).first().map_or("", String::as_str)
    }

    pub fn organizations(&self) -> &[String] {
        self.values(ORGANIZATION)
    }

    pub(super) fn values(&self, attribute: u64) -> &[String] {
        self.0.get(&attribute).map_or(&[], Vec::as_slice)
    }

    fn of(name: &X509Name<'_>) -> Self {
        let attributes = name.iter_attributes().filter_map(|attribute| {
            let arcs: Vec<u64> = attribute.attr_type().iter()?.collect();
            let &[2, 5, 4, kind] = arcs.as_slice() else { return None };
            Some((kind, attribute.as_str().ok()?.to_owned()))
        });
        attributes.collect()
    }
}

/// Of the last arc of attributes' identifiers, and their texts. What a subject does not keep is left out; of what there can
/// be one the last counts.
impl FromIterator<(u64, String)> for Subject {
    fn from_iter<T: IntoIterator<Item = (u64, String)>>(attributes: T) -> Self {
        let mut values: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (kind, text) in attributes.into_iter().filter(|(kind, _)| ATTRIBUTES.contains(kind)) {
            let of_kind = values.entry(kind).or_default();
            if matches!(kind, COMMON_NAME | SERIAL_NUMBER) {
                of_kind.clear();
            }
            of_kind.push(text);
        }
        Subject(values)
    }
}

/// The subject's other names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub dns: Vec<String>,
    pub emails: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub uris: Vec<String>,
}

impl Names {
    pub fn is_empty(&self) -> bool {
        *self == Names::default()
    }

    fn add(&mut self, name: &GeneralName<'_>) -> Result<(), PkiError> {
        let ascii = |text: &str| match text.is_ascii() {
            true => Ok(text.to_owned()),
            false => Err(unreadable("a subject alternative name is malformed")),
        };
        match name {
            GeneralName::DNSName(n) => self.dns.push(ascii(n)?),
            GeneralName::RFC822Name(n) => self.emails.push(ascii(n)?),
            GeneralName::URI(n) => self.uris.push(ascii(n)?),
            GeneralName::IPAddress(bytes) => self.ips.push(address(bytes)?),
            GeneralName::Invalid(..) => return Err(unreadable("a subject alternative name is malformed")),
            _ => {}
        }
        Ok(())
    }
}

fn address(bytes: &[u8]) -> Result<IpAddr, PkiError> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| v6()).map_err(|_| unreadable("cannot parse an IP address"))
}

fn unreadable(why: &str) -> PkiError {
    PkiError::Request(why.to_owned())
}

/// A request for a certificate.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    pub subject: Subject,
    pub names: Names,
    /// SubjectPublicKeyInfo, DER.
    pub(super) public_key: Vec<u8>,
    pub(super) der: Vec<u8>,
}

impl CertificateRequest {
    /// The request in a PEM text.
    pub fn from_pem(pem: &[u8]) -> Result<Self, PkiError> {
        let block = parse_x509_pem(pem).ok().map(|(_, block)| block).filter(|b| b.label == LABEL);
        let block = block.ok_or_else(|| unreadable("PEM block type must be CERTIFICATE REQUEST"))?;
        let (rest, parsed) =
            X509CertificationRequest::from_der(&block.contents).map_err(|e| unreadable(&e.to_string()))?;
        if !rest.is_empty() {
            return Err(unreadable("trailing data"));
        }
        let mut names = Names::default();
        for extension in parsed.requested_extensions().into_iter().flatten() {
            if let ParsedExtension::SubjectAlternativeName(all) = extension {
                all.general_names.iter().try_for_each(|name| names.add(name))?;
            }
        }
        let info = &parsed.certification_request_info;
        Ok(CertificateRequest {
            subject: Subject::of(&info.subject),
            names,
            public_key: info.subject_pki.raw.to_vec(),
            der: block.contents.clone(),
        })
    }
}
