//! One issuer of JSON web tokens: its keys, found by OpenID Connect discovery, and the checks on its tokens.

use super::claims::Mappings;
use crate::remote::Remote;
use isopod_api::UserInfo;
use isopod_base::errors::Chain;
use isopod_kinds::access::Access;
use jiff::Timestamp;
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::Instant;

const TIMEOUT: Duration = Duration::from_secs(30);
/// Keys are asked for again at most this often for tokens whose key is not known: anybody can send such tokens.
const AGAIN: Duration = Duration::from_secs(10);
/// `nbf` is checked with this leeway, `exp` with none: go-oidc's.
const LEEWAY_SECONDS: i64 = 5 * 60;

pub struct Issuer {
    pub url: String,
    discovery: String,
    audiences: Vec<String>,
    algorithms: Vec<String>,
    mappings: Mappings,
    remote: Remote,
    keys: Mutex<Keys>,
}

/// What is known of the issuer's keys.
#[derive(Default)]
struct Keys {
    set: Option<Arc<JwkSet>>,
    /// When they were asked for last.
    asked: Option<Instant>,
}

impl Issuer {
    /// From one entry of `jwt`, which is valid.
    pub fn new(jwt: &Value, algorithms: &[&str]) -> Result<Self, String> {
        let issuer = jwt.at("issuer");
        let url = issuer.text("url").to_owned();
        let discovery = match issuer.text("discoveryURL") {
            "" => format!("{}/.well-known/openid-configuration", url.trim_end_matches('/')),
            given => given.to_owned(),
        };
        let authority = issuer.text("certificateAuthority");
        let pem = (!authority.is_empty()).then_some(authority.as_bytes());
        let uri = discovery.parse::<http::Uri>().map_err(|e| format!("{discovery:?}: {e}"))?;
        let remote = Remote::trusting(uri, pem).map_err(|e| Chain(&e).to_string())?;
        Ok(Issuer {
            discovery,
            audiences: issuer.texts("audiences").into_iter().map(str::to_owned).collect(),
            algorithms: algorithms.iter().map(|a| (*a).to_owned()).collect(),
            mappings: Mappings::new(jwt)?,
            remote,
            keys: Mutex::default(),
            url,
        })
    }

    /// Whether its keys can be had.
    pub async fn ready(&self) -> Result<(), String> {
        self.keys(false).await.map(drop)
    }

    /// The user of a token that says it is this issuer's. The error is upstream's.
    pub async fn user(&self, token: &str, now: Timestamp) -> Result<UserInfo, String> {
        let claims = self.verify(token, now).await.map_err(|e| format!("oidc: verify token: {e}"))?;
        self.mappings.user(&claims)
    }

    async fn verify(&self, token: &str, now: Timestamp) -> Result<Value, String> {
        let header = jsonwebtoken::decode_header(token).map_err(|e| format!("oidc: malformed jwt: {e}"))?;
        let algorithm = format!("{:?}", header.alg);
        if !self.algorithms.contains(&algorithm) {
            let known = self.algorithms.join(" ");
            return Err(format!(
                "oidc: id token signed with unsupported algorithm, expected [{known}] got {algorithm:?}"
            ));
        }
        let mut asked_again = false;
        let claims = loop {
            let set = self.keys(asked_again).await?;
            let candidates = set.keys.iter().filter(|k| match (&header.kid, &k.common.key_id) {
                (Some(wanted), Some(id)) => wanted == id,
                _ => true,
            });
            if let Some(claims) = candidates.filter_map(|key| decoded(token, key, header.alg)).next() {
                break claims;
            }
            // The issuer may have a new key.
            if asked_again {
                return Err("failed to verify signature: failed to verify id token signature".into());
            }
            asked_again = true;
        };
        self.check(&claims, now)?;
        Ok(claims)
    }

    /// Issuer, audience and times of a token whose signature is good.
    fn check(&self, claims: &Value, now: Timestamp) -> Result<(), String> {
        let issuer = claims["iss"].as_str().unwrap_or_default();
        if issuer != self.url {
            return Err(format!(
                "oidc: id token issued by a different provider, expected {:?} got {issuer:?}",
                self.url
            ));
        }
        let seconds = |name: &str| claims[name].as_f64().map(|s| s as i64);
        match seconds("exp") {
            Some(at) if at > now.as_second() => {}
            at => {
                let at = Timestamp::from_second(at.unwrap_or_default()).unwrap_or_default();
                return Err(format!("oidc: token is expired (Token Expiry: {at})"));
            }
        }
        if let Some(at) = seconds("nbf").filter(|at| now.as_second() + LEEWAY_SECONDS < *at) {
            return Err(format!("oidc: current time {now} before the nbf (not before) time: {at}"));
        }
        let audiences = match &claims["aud"] {
            Value::String(one) => vec![one.clone()],
            many => many.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        };
        if audiences.iter().any(|a| self.audiences.contains(a)) {
            return Ok(());
        }
        Err(format!("oidc: expected audience in {:?} got {audiences:?}", self.audiences))
    }

    /// The issuer's keys. `anew`: those at hand do not do.
    async fn keys(&self, anew: bool) -> Result<Arc<JwkSet>, String> {
        let mut keys = self.keys.lock().await;
        let lately = keys.asked.is_some_and(|at| at.elapsed() < AGAIN);
        match &keys.set {
            Some(set) if !anew || lately => return Ok(set.clone()),
            None if lately => {
                return Err(format!("oidc: authenticator for issuer {:?} is not initialized", self.url));
            }
            _ => {}
        }
        keys.asked = Some(Instant::now());
        match self.fetch().await {
            Ok(set) => {
                let set = Arc::new(set);
                keys.set = Some(set.clone());
                Ok(set)
            }
            Err(why) => {
                tracing::warn!(issuer = self.url, why, "cannot read the keys of a token issuer");
                Err(format!("oidc: fetching keys {why}"))
            }
        }
    }

    async fn fetch(&self) -> Result<JwkSet, String> {
        let document = self.read(&self.discovery).await?;
        let issuer = document["issuer"].as_str().unwrap_or_default();
        if issuer != self.url {
            return Err(format!(
                "oidc: issuer URL provided to client ({:?}) did not match the issuer URL returned by provider ({issuer:?})",
                self.url
            ));
        }
        let Some(url) = document["jwks_uri"].as_str().filter(|u| !u.is_empty()) else {
            return Err("provider did not return JWKS URL".into());
        };
        let set = self.read(url).await?;
        // A key of a kind that is not known here is no reason to do without the others.
        let known = set["keys"].as_array().into_iter().flatten();
        Ok(JwkSet { keys: known.filter_map(|k| serde_json::from_value(k.clone()).ok()).collect() })
    }

    async fn read(&self, url: &str) -> Result<Value, String> {
        let uri = url.parse::<http::Uri>().map_err(|e| format!("{url:?}: {e}"))?;
        match self.remote.get(&uri, TIMEOUT).await {
            Ok((200, bytes)) => serde_json::from_slice(&bytes).map_err(|e| format!("{url}: {e}")),
            Ok((code, _)) => Err(format!("{url}: the answer is {code}")),
            Err(e) => Err(format!("{url}: {}", Chain(&e))),
        }
    }
}

/// The claims, if the key has signed them.
fn decoded(token: &str, key: &Jwk, algorithm: Algorithm) -> Option<Value> {
    let key = DecodingKey::from_jwk(key).ok()?;
    let mut validation = Validation::new(algorithm);
    // Times and audiences are checked against what is given here.
    validation.required_spec_claims.clear();
    (validation.validate_exp, validation.validate_nbf, validation.validate_aud) = (false, false, false);
    jsonwebtoken::decode::<Value>(token, &key, &validation).ok().map(|data| data.claims)
}
