//! A certificate in DER (RFC 5280), laid out as Go's `x509.CreateCertificate` does, so that it cannot be told from one of
//! kube-controller-manager.

use super::request::{ATTRIBUTES, Names, Subject};
use super::usages::Usages;
use rcgen::{KeyPair, PublicKeyData};
use std::net::IpAddr;
use time::OffsetDateTime;
use yasna::models::{GeneralizedTime, ObjectIdentifier, UTCTime};
use yasna::{DERWriter, Tag, construct_der};

/// What the authority signs with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Algorithm {
    oid: &'static [u64],
    /// RSA's has a parameter, and it is null.
    has_null: bool,
}

impl Algorithm {
    pub fn of(key: &KeyPair) -> Option<Self> {
        let known = [
            (&rcgen::PKCS_RSA_SHA256, [1, 2, 840, 113549, 1, 1, 11].as_slice()),
            (&rcgen::PKCS_ECDSA_P256_SHA256, &[1, 2, 840, 10045, 4, 3, 2]),
            (&rcgen::PKCS_ECDSA_P384_SHA384, &[1, 2, 840, 10045, 4, 3, 3]),
            (&rcgen::PKCS_ECDSA_P521_SHA512, &[1, 2, 840, 10045, 4, 3, 4]),
            (&rcgen::PKCS_ED25519, &[1, 3, 101, 112]),
        ];
        let algorithm = PublicKeyData::algorithm(key);
        let (is, oid) = known.into_iter().find(|(a, _)| *a == algorithm)?;
        Some(Algorithm { oid, has_null: is == &rcgen::PKCS_RSA_SHA256 })
    }

    fn write(self, writer: DERWriter<'_>) {
        writer.write_sequence(|w| {
            w.next().write_oid(&ObjectIdentifier::from_slice(self.oid));
            if self.has_null {
                w.next().write_null();
            }
        });
    }
}

/// All that a certificate says.
pub(super) struct Certificate<'a> {
    pub serial: [u8; 16],
    pub algorithm: Algorithm,
    /// DER.
    pub issuer: &'a [u8],
    /// Seconds since 1970.
    pub not_before: i64,
    pub not_after: i64,
    pub subject: &'a Subject,
    /// DER.
    pub public_key: &'a [u8],
    pub usages: &'a Usages,
    pub authority_key_id: Option<&'a [u8]>,
    pub names: &'a Names,
}

impl Certificate<'_> {
    /// What is to be signed.
    pub fn encode(&self) -> Vec<u8> {
        construct_der(|w| {
            w.write_sequence(|w| {
                w.next().write_tagged(Tag::context(0), |w| w.write_u8(2));
                w.next().write_bigint_bytes(&self.serial, true);
                self.algorithm.write(w.next());
                w.next().write_der(self.issuer);
                w.next().write_sequence(|w| {
                    time(w.next(), self.not_before);
                    time(w.next(), self.not_after);
                });
                subject(w.next(), self.subject);
                w.next().write_der(self.public_key);
                w.next().write_tagged(Tag::context(3), |w| {
                    w.write_sequence_of(|w| {
                        for (oid, critical, value) in self.extensions() {
                            w.next().write_sequence(|w| {
                                w.next().write_oid(&ObjectIdentifier::from_slice(&oid));
                                if critical {
                                    w.next().write_bool(true);
                                }
                                w.next().write_bytes(&value);
                            });
                        }
                    });
                });
            });
        })
    }

    /// Object identifier, whether it is critical, and the value.
    fn extensions(&self) -> Vec<([u64; 4], bool, Vec<u8>)> {
        let mut all = Vec::new();
        if self.usages.bits != 0 {
            all.push(([2, 5, 29, 15], true, key_usage(self.usages.bits)));
        }
        if !self.usages.purposes.is_empty() {
            let purposes = construct_der(|w| {
                w.write_sequence_of(|w| {
                    self.usages.purposes.iter().for_each(|p| w.next().write_oid(&ObjectIdentifier::from_slice(p)));
                });
            });
            all.push(([2, 5, 29, 37], false, purposes));
        }
        // It signs no certificates.
        all.push(([2, 5, 29, 19], true, construct_der(|w| w.write_sequence(|_| ()))));
        if let Some(id) = self.authority_key_id {
            let id = construct_der(|w| {
                w.write_sequence(|w| w.next().write_tagged_implicit(Tag::context(0), |w| w.write_bytes(id)));
            });
            all.push(([2, 5, 29, 35], false, id));
        }
        if !self.names.is_empty() {
            all.push(([2, 5, 29, 17], self.subject.0.is_empty(), names(self.names)));
        }
        all
    }
}

/// The certificate with its signature.
pub(super) fn signed(body: &[u8], algorithm: Algorithm, signature: &[u8]) -> Vec<u8> {
    construct_der(|w| {
        w.write_sequence(|w| {
            w.next().write_der(body);
            algorithm.write(w.next());
            w.next().write_bitvec_bytes(signature, signature.len() * 8);
        });
    })
}

fn time(writer: DERWriter<'_>, seconds: i64) {
    let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    // RFC 5280, section 4.1.2.5.
    match at.year() {
        1950..2050 => writer.write_utctime(&UTCTime::from_datetime(at)),
        _ => writer.write_generalized_time(&GeneralizedTime::from_datetime(at)),
    }
}

/// All values of an attribute stand in one relative name.
fn subject(writer: DERWriter<'_>, subject: &Subject) {
    writer.write_sequence_of(|w| {
        for kind in ATTRIBUTES {
            let values = subject.values(kind);
            if values.is_empty() || values == [""] {
                continue;
            }
            w.next().write_set_of(|w| {
                for value in values {
                    w.next().write_sequence(|w| {
                        w.next().write_oid(&ObjectIdentifier::from_slice(&[2, 5, 4, kind]));
                        text(w.next(), value);
                    });
                }
            });
        }
    });
}

fn text(writer: DERWriter<'_>, value: &str) {
    let is_printable = |c: char| c.is_ascii_alphanumeric() || " '()+,-./:=?".contains(c);
    match value.chars().all(is_printable) {
        true => writer.write_printable_string(value),
        false => writer.write_utf8_string(value),
    }
}

/// Bits from the highest of the first byte on, without those after the last that is set.
fn key_usage(bits: u16) -> Vec<u8> {
    let length = 16 - bits.leading_zeros() as usize;
    let bytes = bits.reverse_bits().to_be_bytes();
    construct_der(|w| w.write_bitvec_bytes(&bytes[..length.div_ceil(8)], length))
}

fn names(names: &Names) -> Vec<u8> {
    construct_der(|w| {
        w.write_sequence_of(|w| {
            for (tag, texts) in [(2, &names.dns), (1, &names.emails)] {
                texts.iter().for_each(|t| ia5(w.next(), tag, t));
            }
            for ip in &names.ips {
                let bytes = match ip {
                    IpAddr::V4(ip) => ip.octets().to_vec(),
                    IpAddr::V6(ip) => ip.octets().to_vec(),
                };
                w.next().write_tagged_implicit(Tag::context(7), |w| w.write_bytes(&bytes));
            }
            names.uris.iter().for_each(|t| ia5(w.next(), 6, t));
        });
    })
}

fn ia5(writer: DERWriter<'_>, tag: u64, text: &str) {
    writer.write_tagged_implicit(Tag::context(tag), |w| w.write_ia5_string(text));
}
