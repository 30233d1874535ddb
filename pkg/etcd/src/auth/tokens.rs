//! Tokens: what a client shows after it gave its password. `simple`: a random name that this server remembers; `jwt`: signed,
//! for any server that has the key.

use super::Identity;
use super::jwt::{Jwt, JwtOptions};
use super::state::State;
use bytes::Bytes;
use parking_lot::Mutex;
use rand::Rng;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// What `--auth-token` says.
#[derive(Clone, Debug, Default)]
pub enum TokenOptions {
    #[default]
    Simple,
    Jwt(JwtOptions),
}

#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("--auth-token: {0}: write simple, or jwt,sign-method=METHOD,priv-key=FILE,pub-key=FILE,ttl=DURATION")]
    Unknown(String),
    #[error("--auth-token: sign-method={0}: write one of RS256…512, PS256…512, ES256, ES384, EdDSA, HS256…512")]
    Method(String),
    #[error("--auth-token: ttl={0}: write a duration, such as 5m")]
    Ttl(String),
    #[error("--auth-token: {0} needs a key: priv-key=FILE, or to check tokens of others pub-key=FILE")]
    MissingKey(String),
    #[error("--auth-token: cannot read {file}")]
    Read { file: String, source: std::io::Error },
    #[error("--auth-token: {file} holds no key for {method}: write one in PEM")]
    Key { file: String, method: String },
    #[error("--auth-token: priv-key and pub-key do not belong together")]
    Mismatch,
}

impl TokenOptions {
    /// Reads the keys.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let wrong = || TokenError::Unknown(text.to_owned());
        let mut parts = text.split(',');
        let kind = parts.next().unwrap_or_default();
        let mut options = HashMap::new();
        for part in parts {
            let (name, value) = part.split_once('=').ok_or_else(wrong)?;
            if options.insert(name, value).is_some() {
                return Err(wrong());
            }
        }
        match kind {
            "simple" => Ok(TokenOptions::Simple),
            "jwt" => Ok(TokenOptions::Jwt(JwtOptions::read(&options)?)),
            _ => Err(wrong()),
        }
    }
}

pub(crate) enum Tokens {
    Simple(Simple),
    Jwt(Jwt),
}

impl Tokens {
    pub fn new(options: &TokenOptions, ttl: Duration) -> Self {
        match options {
            TokenOptions::Simple => Tokens::Simple(Simple::new(ttl)),
            TokenOptions::Jwt(options) => Tokens::Jwt(Jwt::new(options.clone())),
        }
    }

    /// For a user whose password was right. `None`: this server has no key to sign with.
    pub fn issue(&self, user: &str, password: &Bytes, revision: u64) -> Option<String> {
        match self {
            Tokens::Simple(simple) => Some(simple.issue(user, password)),
            Tokens::Jwt(jwt) => jwt.issue(user, revision),
        }
    }

    pub fn identify(&self, token: &str, state: &State) -> Option<Identity> {
        match self {
            Tokens::Simple(simple) => simple.identify(token, state),
            Tokens::Jwt(jwt) => jwt.identify(token),
        }
    }

    /// Nobody has to show one any more.
    pub fn forget(&self) {
        if let Tokens::Simple(simple) = self {
            simple.issued.lock().clear();
        }
    }
}

/// As long as etcd's.
const LENGTH: usize = 16;

pub(crate) struct Simple {
    ttl: Duration,
    next: AtomicU64,
    issued: Mutex<HashMap<String, Issued>>,
}

struct Issued {
    user: String,
    /// Its hash then. Another one now: the password was changed or the user made anew, and the token counts no more.
    password: Bytes,
    /// Put off by each use.
    expires: Instant,
}

impl Simple {
    fn new(ttl: Duration) -> Self {
        Simple { ttl, next: AtomicU64::new(1), issued: Mutex::default() }
    }

    fn issue(&self, user: &str, password: &Bytes) -> String {
        let mut rng = rand::rng();
        let letters: String = (0..LENGTH).map(|_| rng.sample(rand::distr::Alphabetic) as char).collect();
        let token = format!("{letters}.{}", self.next.fetch_add(1, Ordering::Relaxed));
        let now = Instant::now();
        let mut issued = self.issued.lock();
        issued.retain(|_, i| i.expires > now);
        let entry = Issued { user: user.to_owned(), password: password.clone(), expires: now + self.ttl };
        issued.insert(token.clone(), entry);
        token
    }

    fn identify(&self, token: &str, state: &State) -> Option<Identity> {
        let now = Instant::now();
        let mut issued = self.issued.lock();
        let entry = issued.get_mut(token).filter(|i| i.expires > now)?;
        if state.user(&entry.user)?.password != entry.password {
            return None;
        }
        entry.expires = now + self.ttl;
        Some(Identity { name: entry.user.clone(), revision: state.revision })
    }
}
