//! What certificates may be used for, by the names of the certificates API.

use crate::PkiError;
use std::collections::BTreeSet;

/// Bits of the extension keyUsage (RFC 5280, section 4.2.1.3), the first one is the lowest.
const BITS: [(&str, u16); 10] = [
    ("signing", 0),
    ("digital signature", 0),
    ("content commitment", 1),
    ("key encipherment", 2),
    ("data encipherment", 3),
    ("key agreement", 4),
    ("cert sign", 5),
    ("crl sign", 6),
    ("encipher only", 7),
    ("decipher only", 8),
];

/// Purposes of the extension extKeyUsage, in the order in which they are written.
pub(super) const PURPOSES: [(&str, &[u64]); 13] = [
    ("any", &[2, 5, 29, 37, 0]),
    ("server auth", &[1, 3, 6, 1, 5, 5, 7, 3, 1]),
    ("client auth", &[1, 3, 6, 1, 5, 5, 7, 3, 2]),
    ("code signing", &[1, 3, 6, 1, 5, 5, 7, 3, 3]),
    ("email protection", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("s/mime", &[1, 3, 6, 1, 5, 5, 7, 3, 4]),
    ("ipsec end system", &[1, 3, 6, 1, 5, 5, 7, 3, 5]),
    ("ipsec tunnel", &[1, 3, 6, 1, 5, 5, 7, 3, 6]),
    ("ipsec user", &[1, 3, 6, 1, 5, 5, 7, 3, 7]),
    ("timestamping", &[1, 3, 6, 1, 5, 5, 7, 3, 8]),
    ("ocsp signing", &[1, 3, 6, 1, 5, 5, 7, 3, 9]),
    ("microsoft sgc", &[1, 3, 6, 1, 4, 1, 311, 10, 3, 3]),
    ("netscape sgc", &[2, 16, 840, 1, 113730, 4, 1]),
];

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Usages {
    pub bits: u16,
    /// Object identifiers, each once.
    pub purposes: Vec<&'static [u64]>,
}

impl Usages {
    pub fn of(names: &[String]) -> Result<Self, PkiError> {
        let mut usages = Usages::default();
        let mut places = BTreeSet::new();
        let mut unknown = Vec::new();
        for name in names {
            if let Some((_, bit)) = BITS.iter().find(|(n, _)| n == name) {
                usages.bits |= 1 << bit;
            } else if let Some(place) = PURPOSES.iter().position(|(n, _)| n == name) {
                places.insert(place);
            } else {
                unknown.push(name.as_str());
            }
        }
        if !unknown.is_empty() {
            return Err(PkiError::Request(format!("unrecognized usage values: {unknown:?}")));
        }
        usages.purposes = places.into_iter().map(|p| PURPOSES[p].1).collect();
        usages.purposes.dedup();
        Ok(usages)
    }
}
