//! The ciphers of the providers, with upstream's layouts.

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::cipher::{
    self, DecryptionContext, PaddedBlockDecryptingKey, PaddedBlockEncryptingKey, UnboundCipherKey,
};
use aws_lc_rs::hkdf;
use aws_lc_rs::iv::FixedLength;
use aws_lc_rs::rand;
use crypto_secretbox::aead::Aead as _;
use crypto_secretbox::{KeyInit as _, XSalsa20Poly1305};

/// The bytes cannot be opened with this key.
#[derive(Debug, thiserror::Error)]
pub enum CipherError {
    #[error("the stored data was shorter than the required size")]
    Short,
    #[error("it was sealed with another key, or changed since")]
    Wrong,
    #[error("the key cannot be used")]
    Key,
}

/// A key and what it is for.
pub enum Cipher {
    /// A nonce of 12 bytes, the sealed bytes, a tag of 16; bound to where it is kept.
    AesGcm(Box<LessSafeKey>),
    /// An initialization vector of 16 bytes, then the blocks. Nothing tells whether it was changed.
    AesCbc(Vec<u8>),
    /// NaCl's secretbox behind its nonce of 24 bytes.
    Secretbox(Box<XSalsa20Poly1305>),
    /// 32 bytes from which, with the seed, the key of this one value is derived; then as AES-GCM (KEP-3299).
    Derived(hkdf::Prk),
}

const INFO: usize = 32;
const GCM_NONCE: usize = 12;
const BOX_NONCE: usize = 24;
const BLOCK: usize = 16;

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the kernel's random numbers never fail once they are there");
    bytes
}

/// Random bytes, for a key or as the seed of a [`Cipher::derived`].
pub fn seed() -> [u8; 32] {
    random()
}

fn gcm(key: &[u8]) -> Result<LessSafeKey, CipherError> {
    let algorithm = match key.len() {
        16 => &aead::AES_128_GCM,
        24 => &aead::AES_192_GCM,
        32 => &aead::AES_256_GCM,
        _ => return Err(CipherError::Key),
    };
    Ok(LessSafeKey::new(UnboundKey::new(algorithm, key).map_err(|_| CipherError::Key)?))
}

fn block_cipher(key: &[u8]) -> Result<UnboundCipherKey, CipherError> {
    let algorithm = match key.len() {
        16 => &cipher::AES_128,
        24 => &cipher::AES_192,
        32 => &cipher::AES_256,
        _ => return Err(CipherError::Key),
    };
    UnboundCipherKey::new(algorithm, key).map_err(|_| CipherError::Key)
}

/// The length of a derived key.
struct Aes256;

impl hkdf::KeyType for Aes256 {
    fn len(&self) -> usize {
        32
    }
}

fn derive(seed: &hkdf::Prk, info: &[u8]) -> Result<LessSafeKey, CipherError> {
    let mut key = [0; 32];
    let info = [info];
    let expanded = seed.expand(&info, Aes256).and_then(|okm| okm.fill(&mut key));
    expanded.map_err(|_| CipherError::Key)?;
    gcm(&key)
}

impl Cipher {
    pub fn aes_gcm(key: &[u8]) -> Result<Self, CipherError> {
        Ok(Cipher::AesGcm(Box::new(gcm(key)?)))
    }

    pub fn aes_cbc(key: &[u8]) -> Result<Self, CipherError> {
        block_cipher(key)?;
        Ok(Cipher::AesCbc(key.to_vec()))
    }

    pub fn secretbox(key: &[u8]) -> Result<Self, CipherError> {
        Ok(Cipher::Secretbox(Box::new(XSalsa20Poly1305::new_from_slice(key).map_err(|_| CipherError::Key)?)))
    }

    pub fn derived(seed: &[u8]) -> Result<Self, CipherError> {
        if seed.len() < 32 {
            return Err(CipherError::Key);
        }
        Ok(Cipher::Derived(hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, seed)))
    }

    /// The bytes behind the provider's prefix. `place` is the key under which they are kept.
    pub fn seal(&self, plain: &[u8], place: &[u8], out: &mut Vec<u8>) -> Result<(), CipherError> {
        match self {
            Cipher::AesGcm(key) => seal_gcm(key, plain, place, out),
            Cipher::AesCbc(key) => {
                let key = PaddedBlockEncryptingKey::cbc_pkcs7(block_cipher(key)?).map_err(|_| CipherError::Key)?;
                let mut blocks = plain.to_vec();
                let context = key.encrypt(&mut blocks).map_err(|_| CipherError::Key)?;
                let iv: &[u8] = (&context).try_into().map_err(|_| CipherError::Key)?;
                out.extend_from_slice(iv);
                out.extend_from_slice(&blocks);
                Ok(())
            }
            Cipher::Secretbox(key) => {
                let nonce: [u8; BOX_NONCE] = random();
                let sealed = key.encrypt(&nonce.into(), plain).map_err(|_| CipherError::Key)?;
                out.extend_from_slice(&nonce);
                out.extend_from_slice(&sealed);
                Ok(())
            }
            Cipher::Derived(seed) => {
                let info: [u8; INFO] = random();
                out.extend_from_slice(&info);
                seal_gcm(&derive(seed, &info)?, plain, place, out)
            }
        }
    }

    /// What [`Cipher::seal`] was given.
    pub fn open(&self, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, CipherError> {
        match self {
            Cipher::AesGcm(key) => open_gcm(key, sealed, place),
            Cipher::AesCbc(key) => {
                let (iv, blocks) = sealed.split_at_checked(BLOCK).ok_or(CipherError::Short)?;
                let iv = FixedLength::<BLOCK>::try_from(iv).map_err(|_| CipherError::Short)?;
                let key = PaddedBlockDecryptingKey::cbc_pkcs7(block_cipher(key)?).map_err(|_| CipherError::Key)?;
                let mut plain = blocks.to_vec();
                let opened = key.decrypt(&mut plain, DecryptionContext::Iv128(iv));
                let length = opened.map_err(|_| CipherError::Wrong)?.len();
                plain.truncate(length);
                Ok(plain)
            }
            Cipher::Secretbox(key) => {
                let (nonce, sealed) = sealed.split_at_checked(BOX_NONCE).ok_or(CipherError::Short)?;
                let nonce: [u8; BOX_NONCE] = nonce.try_into().map_err(|_| CipherError::Short)?;
                key.decrypt(&nonce.into(), sealed).map_err(|_| CipherError::Wrong)
            }
            Cipher::Derived(seed) => {
                let (info, sealed) = sealed.split_at_checked(INFO).ok_or(CipherError::Short)?;
                open_gcm(&derive(seed, info)?, sealed, place)
            }
        }
    }
}

fn seal_gcm(key: &LessSafeKey, plain: &[u8], place: &[u8], out: &mut Vec<u8>) -> Result<(), CipherError> {
    let nonce: [u8; GCM_NONCE] = random();
    out.extend_from_slice(&nonce);
    let mut sealed = plain.to_vec();
    let nonce = Nonce::assume_unique_for_key(nonce);
    key.seal_in_place_append_tag(nonce, Aad::from(place), &mut sealed).map_err(|_| CipherError::Key)?;
    out.extend_from_slice(&sealed);
    Ok(())
}

fn open_gcm(key: &LessSafeKey, sealed: &[u8], place: &[u8]) -> Result<Vec<u8>, CipherError> {
    let (nonce, sealed) = sealed.split_at_checked(GCM_NONCE).ok_or(CipherError::Short)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| CipherError::Short)?;
    let mut plain = sealed.to_vec();
    let opened = key.open_in_place(nonce, Aad::from(place), &mut plain);
    let length = opened.map_err(|_| CipherError::Wrong)?.len();
    plain.truncate(length);
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Cipher> {
        let mut made = vec![Cipher::secretbox(&[7; 32]).unwrap(), Cipher::derived(&[7; 32]).unwrap()];
        for size in [16, 24, 32] {
            made.push(Cipher::aes_gcm(&vec![7; size]).unwrap());
            made.push(Cipher::aes_cbc(&vec![7; size]).unwrap());
        }
        made
    }

    #[test]
    fn what_was_sealed_is_opened() {
        for cipher in all() {
            for plain in [&b""[..], b"x", &[9; 16], &[9; 5000]] {
                let (mut one, mut two) = (Vec::new(), Vec::new());
                cipher.seal(plain, b"/a", &mut one).unwrap();
                cipher.seal(plain, b"/a", &mut two).unwrap();
                assert_ne!(one, two, "equal values are not to look equal");
                assert_eq!(cipher.open(&one, b"/a").unwrap(), plain);
            }
        }
    }

    #[test]
    fn what_was_changed_or_moved_is_refused() {
        for cipher in all() {
            let authenticated = !matches!(cipher, Cipher::AesCbc(_));
            let bound = matches!(cipher, Cipher::AesGcm(_) | Cipher::Derived(_));
            let mut sealed = Vec::new();
            cipher.seal(b"a secret of some length", b"/a", &mut sealed).unwrap();
            assert_eq!(cipher.open(&sealed, b"/b").is_err(), bound);
            for i in 0..sealed.len() {
                let mut changed = sealed.clone();
                changed[i] ^= 1;
                assert!(!authenticated || cipher.open(&changed, b"/a").is_err(), "byte {i}");
                assert!(cipher.open(&sealed[..i], b"/a").is_err() || !authenticated);
            }
        }
    }

    /// NaCl's own test vector (`tests/secretbox.c`): the layout is that of everyone else's secretbox.
    #[test]
    fn secretbox_is_nacls() {
        let key = hex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce = hex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let start = hex("f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce");
        let cipher = Cipher::secretbox(&key).unwrap();
        // Made with that key and nonce from the first bytes of the vector's message; the tag is of these bytes alone.
        let Cipher::Secretbox(raw) = &cipher else { unreachable!() };
        let message = hex("be075fc53c81f2d5cf141316ebeb0c7b");
        let nonce: [u8; 24] = nonce.try_into().unwrap();
        let sealed = raw.encrypt(&nonce.into(), &message[..]).unwrap();
        assert_eq!(sealed[16..], start[16..], "the stream's first bytes");
        let stored = [&nonce[..], &sealed].concat();
        assert_eq!(cipher.open(&stored, b"").unwrap(), message);
    }

    /// Sealed by kube-apiserver's own code (k8s.io/apiserver v0.37.2, `pkg/storage/value/encrypt`), with the key 00 01 02 ….
    #[test]
    fn what_kube_apiserver_sealed_is_opened() {
        for (name, size, sealed) in [
            (
                "aesgcm",
                16,
                "28b365c5fa6c4fa82b14bd2ebabb62c971ba634b06c1c8f374c7f02d74e5d95b8bafb67257521f2362afe808558d6fb8f7dfc40d",
            ),
            (
                "aescbc",
                16,
                "4edda1642f82779604944b874dd5f2326df3bbabb4e3364dff0e789a412514b028309a74cdeb246b018af0114d377cf7",
            ),
            (
                "aesgcm",
                24,
                "82ca63c30f14c35fa612b5b4e24568131848f61bf529d5ab3aa5b5f38deb4caa48cda04b91905bf82cc132bea97423e04b81d938",
            ),
            (
                "aescbc",
                24,
                "2b13be9ad2b4c053e8a4112a395e0561b744dfad4e994556252954f4a0ae77781ba36ee1995054215929fe485d63282f",
            ),
            (
                "aesgcm",
                32,
                "a6e2f5a591fdfdbcf072969649f78a367555f5bffd4feb48e95eb6ac7bfc28dc83849592387e3c36e7e3b63c8a56accdbafe4de1",
            ),
            (
                "aescbc",
                32,
                "66b5bc3a65d187439d56d0b0cf542d9fa5fbe4d0c7ac3ea21cce58f8e34cd8210d475c8ae9a41c7caf8d93e706f87029",
            ),
            (
                "secretbox",
                32,
                "86c4cab14372b0edd139059c8ec140b7e1c830454994ca25ecc119962afa5481b9bde0b66bcb953afd1fc305e69a2d9ddf9f002a020e4f6ddc540cffc10338ed",
            ),
            (
                "derived",
                32,
                "b8d6c95aa9530e767c06b4f2674d748f45114d973cda83cb9b41ded1959ba10bc33534fe010ce44d9a45d30189b7c5dac51dca68ef0c22441801f1b0596b2a8b25e54a1aae3469717e8a202b8de9b8f585ec363d",
            ),
        ] {
            let key: Vec<u8> = (0..size).collect();
            let cipher = match name {
                "aesgcm" => Cipher::aes_gcm(&key),
                "aescbc" => Cipher::aes_cbc(&key),
                "secretbox" => Cipher::secretbox(&key),
                _ => Cipher::derived(&key),
            };
            let opened = cipher.unwrap().open(&hex(sealed), b"/registry/secrets/default/a");
            assert_eq!(opened.unwrap(), b"sealed by kube-apiserver", "{name} {size}");
        }
    }

    fn hex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
    }
}
