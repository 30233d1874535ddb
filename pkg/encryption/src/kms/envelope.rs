//! How a value that was sealed with a plugin's help is kept: upstream's `EncryptedObject` (`kmsv2/v2/api.proto`).

use super::KmsError;
use super::plugin::Seed;
use prost::Message;
use std::collections::BTreeMap;

/// The key is derived from a seed; the other kind, which is only read, was the key itself.
pub const SEED: i32 = 1;
const KEY: i32 = 0;

const MAX_KEY_ID: usize = 1024;
const MAX_SOURCE: usize = 1024;
const MAX_ANNOTATIONS: usize = 32 * 1024;

#[derive(Clone, PartialEq, Message)]
struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    encrypted_data: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    encrypted_dek_source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    encrypted_dek_source_type: i32,
}

/// A decoded one.
pub struct Envelope {
    pub seed: Seed,
    pub sealed: Vec<u8>,
    pub source: i32,
}

impl Envelope {
    pub fn decode(stored: &[u8]) -> Result<Self, KmsError> {
        let read = EncryptedObject::decode(stored).map_err(|_| KmsError::Envelope("it is not an EncryptedObject"))?;
        if ![KEY, SEED].contains(&read.encrypted_dek_source_type) {
            return Err(KmsError::Envelope("unknown encryptedDEKSourceType"));
        }
        if read.encrypted_data.is_empty() {
            return Err(KmsError::Envelope("encrypted data is empty"));
        }
        let seed = Seed { ciphertext: read.encrypted_dek_source, key_id: read.key_id, annotations: read.annotations };
        check(&seed).map_err(KmsError::Envelope)?;
        Ok(Envelope { seed, sealed: read.encrypted_data, source: read.encrypted_dek_source_type })
    }
}

/// May a key be called this?
pub fn check_key_id(key_id: &str) -> Result<(), &'static str> {
    match key_id.len() {
        0 => Err("keyID is empty"),
        n if n > MAX_KEY_ID => Err("keyID exceeds the max size of 1024 bytes"),
        _ => Ok(()),
    }
}

/// Keeps to upstream's limits, so that what is written here can be read there.
pub fn check(seed: &Seed) -> Result<(), &'static str> {
    check_key_id(&seed.key_id)?;
    match seed.ciphertext.len() {
        0 => return Err("encrypted DEK source is empty"),
        n if n > MAX_SOURCE => return Err("encrypted DEK source exceeds the max size of 1024 bytes"),
        _ => {}
    }
    let size: usize = seed.annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if size > MAX_ANNOTATIONS {
        return Err("total size of annotations exceeds the max size of 32768 bytes");
    }
    let qualified = |k: &String| isopod_api::names::dns1123_subdomain(k).is_empty() && k.contains('.');
    if !seed.annotations.keys().all(qualified) {
        return Err("annotations: keys must be fully qualified domain names");
    }
    Ok(())
}

/// Everything but the sealed bytes, encoded. Fields may come in any order.
pub fn head(seed: &Seed) -> Vec<u8> {
    object(seed, SEED).encode_to_vec()
}

/// Appends an encoded envelope.
pub fn append(head: &[u8], sealed: &[u8], out: &mut Vec<u8>) {
    prost::encoding::bytes::encode(1, &sealed.to_vec(), out);
    out.extend_from_slice(head);
}

/// Tells seeds apart.
pub fn identity(seed: &Seed, source: i32) -> Vec<u8> {
    object(seed, source).encode_to_vec()
}

fn object(seed: &Seed, source: i32) -> EncryptedObject {
    EncryptedObject {
        encrypted_data: Vec::new(),
        key_id: seed.key_id.clone(),
        encrypted_dek_source: seed.ciphertext.clone(),
        annotations: seed.annotations.clone(),
        encrypted_dek_source_type: source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_is_read_as_it_was_written() {
        let annotations = BTreeMap::from([("version.example.com".to_owned(), vec![1])]);
        let seed = Seed { ciphertext: vec![2; 40], key_id: "k1".into(), annotations };
        let mut out = Vec::new();
        append(&head(&seed), b"sealed", &mut out);
        let read = Envelope::decode(&out).unwrap();
        assert_eq!((read.seed, &read.sealed[..], read.source), (seed, &b"sealed"[..], SEED));
    }

    #[test]
    fn what_upstream_would_not_read_is_refused() {
        let good = Seed { ciphertext: vec![2; 40], key_id: "k1".into(), annotations: BTreeMap::new() };
        assert_eq!(check(&good), Ok(()));
        assert!(check(&Seed { key_id: String::new(), ..good.clone() }).is_err());
        assert!(check(&Seed { key_id: "k".repeat(1025), ..good.clone() }).is_err());
        assert!(check(&Seed { ciphertext: vec![], ..good.clone() }).is_err());
        assert!(check(&Seed { ciphertext: vec![0; 1025], ..good.clone() }).is_err());
        let short = BTreeMap::from([("version".to_owned(), vec![1])]);
        assert!(check(&Seed { annotations: short, ..good.clone() }).is_err());
        let large = BTreeMap::from([("a.example.com".to_owned(), vec![1; 32 * 1024])]);
        assert!(check(&Seed { annotations: large, ..good }).is_err());
        assert!(Envelope::decode(b"").is_err() && Envelope::decode(b"\xff\xff").is_err());
    }
}
