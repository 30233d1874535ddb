//! `AuthenticationConfiguration` of apiserver.config.k8s.io: issuers of JSON web tokens (OpenID Connect), and who may come
//! without credentials. The `--oidc-*` flags are a short form of it.

use super::claims::Mappings;
use super::issuer::Issuer;
use super::{Known, Remarks, TokenSource};
use crate::ApiServer;
use crate::config_file::{self, Shape};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use isopod_api::{FieldError, FieldErrors, Path};
use isopod_base::reloads::Reloads;
use isopod_kinds::access::Access;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path as File, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    #[error("cannot read the authentication configuration {0:?}")]
    Read(PathBuf, #[source] io::Error),
    #[error("failed to load authentication configuration from file {0:?}: {1}")]
    Syntax(PathBuf, String),
    #[error("the keys of the token issuer {0:?} cannot be read: {1}")]
    Keys(String, String),
    #[error("the authentication configuration is invalid: {0}")]
    Invalid(String),
    #[error("cannot read the certificate of the token issuer, {0:?}")]
    Authority(PathBuf, #[source] io::Error),
}

/// `--oidc-*`.
#[derive(Clone, Debug, Default)]
pub struct OidcFlags {
    pub issuer_url: String,
    pub client_id: String,
    pub username_claim: String,
    pub username_prefix: String,
    pub groups_claim: String,
    pub groups_prefix: String,
    pub required_claims: Vec<(String, String)>,
    pub signing_algorithms: Vec<String>,
    pub ca_file: Option<PathBuf>,
}

/// Issuers, and what the configuration says of anonymous requests.
///
/// Invariant: a file that has become bad, or whose issuers cannot be reached, changes nothing; what is in force stays.
pub struct Jwt {
    issuers: ArcSwap<Vec<Issuer>>,
    /// Whether requests without credentials are served, and on which paths alone (none: on all).
    pub anonymous: Anonymous,
    /// The file that [`Jwt::look`] follows.
    source: Option<Source>,
}

type Anonymous = Option<(bool, Vec<String>)>;

struct Source {
    path: PathBuf,
    own: Vec<String>,
    /// What is not to be tried again until it changes.
    read: Mutex<String>,
    reloads: Reloads,
}

const FILE: config_file::Kind = config_file::Kind {
    name: "AuthenticationConfiguration",
    fields: &[
        (
            "jwt",
            Shape::Objects(&[
                (
                    "issuer",
                    Shape::Object(&[
                        ("url", Shape::Text),
                        ("discoveryURL", Shape::Text),
                        ("certificateAuthority", Shape::Text),
                        ("audiences", Shape::Texts),
                        ("audienceMatchPolicy", Shape::Text),
                        ("egressSelectorType", Shape::Text),
                    ]),
                ),
                (
                    "claimValidationRules",
                    Shape::Objects(&[
                        ("claim", Shape::Text),
                        ("requiredValue", Shape::Text),
                        ("expression", Shape::Text),
                        ("message", Shape::Text),
                    ]),
                ),
                (
                    "claimMappings",
                    Shape::Object(&[
                        ("username", Shape::Object(PREFIXED)),
                        ("groups", Shape::Object(PREFIXED)),
                        ("uid", Shape::Object(&[("claim", Shape::Text), ("expression", Shape::Text)])),
                        ("extra", Shape::Objects(&[("key", Shape::Text), ("valueExpression", Shape::Text)])),
                    ]),
                ),
                ("userValidationRules", Shape::Objects(&[("expression", Shape::Text), ("message", Shape::Text)])),
            ]),
        ),
        (
            "anonymous",
            Shape::Object(&[("enabled", Shape::Bool), ("conditions", Shape::Objects(&[("path", Shape::Text)]))]),
        ),
    ],
};
const PREFIXED: config_file::Fields = &[("claim", Shape::Text), ("prefix", Shape::Text), ("expression", Shape::Text)];
/// Every algorithm but those without a key pair.
const ALGORITHMS: [&str; 9] = ["RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512", "EdDSA"];

impl Jwt {
    /// Reads `--authentication-config`. `own`: issuers of this server's own tokens, which no other may be; `identity`: how
    /// metrics of reloads name this server.
    pub fn read(file: &File, own: &[String], identity: &str) -> Result<Self, JwtError> {
        let text = std::fs::read_to_string(file).map_err(|e| JwtError::Read(file.to_owned(), e))?;
        let mut jwt = Self::new(&parse(file, &text)?, own, &ALGORITHMS)?;
        jwt.source = Some(Source {
            path: file.to_owned(),
            own: own.to_vec(),
            reloads: Reloads::new(identity, &text),
            read: Mutex::new(text),
        });
        Ok(jwt)
    }

    /// The file that it follows.
    pub fn file(&self) -> Option<&File> {
        self.source.as_ref().map(|s| s.path.as_path())
    }

    /// Looks at its file once. True: another configuration is in force now.
    pub async fn look(&self) -> Result<bool, JwtError> {
        let Some(source) = &self.source else { return Ok(false) };
        let outcome = self.take_in(source).await;
        if outcome.is_err() {
            source.reloads.failed();
        }
        outcome
    }

    async fn take_in(&self, source: &Source) -> Result<bool, JwtError> {
        let path = &source.path;
        let text = tokio::fs::read_to_string(path).await.map_err(|e| JwtError::Read(path.clone(), e))?;
        if text == *source.read.lock() {
            return Ok(false);
        }
        let made = parse(path, &text).and_then(|config| Self::new(&config, &source.own, &ALGORITHMS));
        let made = match made {
            Ok(new) if new.anonymous != self.anonymous => {
                Err(JwtError::Invalid("anonymous: Forbidden: changed from initial configuration file".to_owned()))
            }
            made => made,
        };
        let new = made.inspect_err(|_| source.read.lock().clone_from(&text))?;
        // Issuers that do not answer now may do so the next time.
        let issuers = new.issuers.into_inner();
        for issuer in issuers.iter() {
            issuer.ready().await.map_err(|why| JwtError::Keys(issuer.url.clone(), why))?;
        }
        self.issuers.store(issuers);
        source.reloads.succeeded(&text);
        *source.read.lock() = text;
        Ok(true)
    }

    pub fn from_flags(flags: &OidcFlags, own: &[String]) -> Result<Self, JwtError> {
        let authority = match &flags.ca_file {
            Some(file) => std::fs::read_to_string(file).map_err(|e| JwtError::Authority(file.clone(), e))?,
            None => String::new(),
        };
        let prefix = match flags.username_prefix.as_str() {
            "-" => String::new(),
            "" if flags.username_claim != "email" => format!("{}#", flags.issuer_url),
            given => given.to_owned(),
        };
        let rule = |(claim, value): &(String, String)| json!({"claim": claim, "requiredValue": value});
        let mut mappings = json!({"username": {"claim": flags.username_claim, "prefix": prefix}});
        if !flags.groups_claim.is_empty() {
            mappings["groups"] = json!({"claim": flags.groups_claim, "prefix": flags.groups_prefix});
        }
        let value = json!({"jwt": [{
            "issuer": {"url": flags.issuer_url, "audiences": [flags.client_id], "certificateAuthority": authority},
            "claimValidationRules": flags.required_claims.iter().map(rule).collect::<Vec<_>>(),
            "claimMappings": mappings,
        }]});
        let algorithms: Vec<&str> = flags.signing_algorithms.iter().map(String::as_str).collect();
        if let Some(unknown) = algorithms.iter().find(|a| !ALGORITHMS.contains(a)) {
            return Err(JwtError::Invalid(format!("oidc: unsupported signing alg: {unknown:?}")));
        }
        Self::new(&value, own, &algorithms)
    }

    fn new(config: &Value, own: &[String], algorithms: &[&str]) -> Result<Self, JwtError> {
        let errors = validate(config, own);
        if !errors.is_empty() {
            return Err(JwtError::Invalid(isopod_api::aggregate(&errors)));
        }
        let issuers = config.list("jwt").iter().map(|jwt| Issuer::new(jwt, algorithms)).collect::<Result<Vec<_>, _>>();
        let anonymous = config.has("anonymous").then(|| {
            let paths = config.list("anonymous.conditions").iter().map(|c| c.text("path").to_owned());
            (config.flag("anonymous.enabled"), paths.collect())
        });
        let issuers = ArcSwap::from_pointee(issuers.map_err(JwtError::Invalid)?);
        Ok(Jwt { issuers, anonymous, source: None })
    }
}

fn parse(file: &File, text: &str) -> Result<Value, JwtError> {
    config_file::decode(text, &FILE).map_err(|why| JwtError::Syntax(file.to_owned(), why))
}

#[async_trait]
impl TokenSource for Jwt {
    async fn known(
        &self,
        server: &ApiServer,
        token: &str,
        audiences: &[String],
        _remarks: &Remarks<'_>,
    ) -> Result<Option<Known>, String> {
        let Some(claimed) = isopod_auth::token::unverified_issuer(token) else { return Ok(None) };
        let issuers = self.issuers.load_full();
        let Some(issuer) = issuers.iter().find(|i| i.url == claimed) else { return Ok(None) };
        // The token is one for this server: its own audiences are others'.
        let Some(audiences) = super::implicit(server, audiences) else { return Ok(None) };
        let user = issuer.user(token, server.config.clock.now()).await?;
        Ok(Some(Known { user, audiences }))
    }

    fn register(&self, registry: &mut Registry) {
        if let Some(source) = &self.source {
            crate::reload::register(&source.reloads, "authentication", registry);
        }
    }
}

fn validate(config: &Value, own: &[String]) -> FieldErrors {
    let mut errors = Vec::new();
    let jwt = config.list("jwt");
    let root = Path::new("jwt");
    if jwt.len() > 64 {
        errors.push(FieldError::too_many(&root, jwt.len(), 64));
    }
    let (mut urls, mut discoveries) = (BTreeSet::new(), BTreeSet::new());
    for (i, one) in jwt.iter().enumerate() {
        let path = root.index(i);
        let issuer = path.child("issuer");
        let (url, discovery) = (one.text("issuer.url"), one.text("issuer.discoveryURL"));
        errors.extend(validate_issuer(one.at("issuer"), own, &issuer));
        if !urls.insert(url) {
            errors.push(FieldError::duplicate(&issuer.child("url"), url));
        }
        if !discovery.is_empty() && !discoveries.insert(discovery) {
            errors.push(FieldError::duplicate(&issuer.child("discoveryURL"), discovery));
        }
        errors.extend(Mappings::validate(one, &path));
    }
    if config.has("anonymous") && !config.flag("anonymous.enabled") && !config.list("anonymous.conditions").is_empty() {
        let why = "enabled should be set to true when conditions are defined";
        let path = Path::new("anonymous").child("conditions");
        errors.push(FieldError::invalid(&path, config.at("anonymous.conditions").clone(), why));
    }
    errors
}

fn validate_issuer(issuer: &Value, own: &[String], path: &Path) -> FieldErrors {
    let mut errors = Vec::new();
    let (url, discovery) = (issuer.text("url"), issuer.text("discoveryURL"));
    match url {
        "" => errors.push(FieldError::required(&path.child("url"), "")),
        url => errors.extend(validate_url(url, own, &path.child("url"))),
    }
    if !discovery.is_empty() {
        let at = path.child("discoveryURL");
        if discovery.trim_end_matches('/') == url.trim_end_matches('/') {
            errors.push(FieldError::invalid(&at, discovery, "discoveryURL must be different from URL"));
        }
        errors.extend(validate_url(discovery, &[], &at));
    }
    let (audiences, at) = (issuer.texts("audiences"), path.child("audiences"));
    if audiences.is_empty() {
        errors.push(FieldError::required(&at, format!("at least one {at} is required")));
    }
    let mut seen = BTreeSet::new();
    for (i, audience) in audiences.iter().enumerate() {
        match *audience {
            "" => errors.push(FieldError::required(&at.index(i), "")),
            a if !seen.insert(a) => errors.push(FieldError::duplicate(&at.index(i), a)),
            _ => {}
        }
    }
    let (policy, at) = (issuer.text("audienceMatchPolicy"), path.child("audienceMatchPolicy"));
    if audiences.len() > 1 && policy != "MatchAny" {
        let why = "audienceMatchPolicy must be MatchAny for multiple audiences";
        errors.push(FieldError::invalid(&at, policy, why));
    }
    if audiences.len() == 1 && !matches!(policy, "" | "MatchAny") {
        let why = "audienceMatchPolicy must be empty or MatchAny for single audience";
        errors.push(FieldError::invalid(&at, policy, why));
    }
    if !issuer.text("egressSelectorType").is_empty() {
        let why = "this server has no egress selectors; leave it out";
        errors.push(FieldError::invalid(&path.child("egressSelectorType"), issuer.text("egressSelectorType"), why));
    }
    errors
}

fn validate_url(url: &str, own: &[String], path: &Path) -> FieldErrors {
    let mut errors = Vec::new();
    let mut wrong = |why: String| errors.push(FieldError::invalid(path, url, why));
    if own.iter().any(|o| o == url) {
        let all: Vec<&str> = own.iter().map(String::as_str).collect();
        wrong(format!("URL must not overlap with disallowed issuers: [{}]", all.join(" ")));
    }
    match url.parse::<http::Uri>() {
        Err(e) => wrong(e.to_string()),
        Ok(uri) => {
            if uri.scheme_str() != Some("https") {
                wrong("URL scheme must be https".into());
            }
            if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
                wrong("URL must not contain a username or password".into());
            }
            if uri.query().is_some() {
                wrong("URL must not contain a query".into());
            }
            if url.contains('#') {
                wrong("URL must not contain a fragment".into());
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations_are_checked() {
        let good = json!({"jwt": [{
            "issuer": {"url": "https://a.example", "audiences": ["x"]},
            "claimMappings": {"username": {"claim": "sub", "prefix": ""}},
        }]});
        assert_eq!(validate(&good, &[]), []);
        let table = [
            (
                "/jwt/0/issuer/url",
                json!("http://a.example"),
                "jwt[0].issuer.url: Invalid value: \"http://a.example\": URL scheme must be https",
            ),
            (
                "/jwt/0/issuer/url",
                json!("https://own"),
                "jwt[0].issuer.url: Invalid value: \"https://own\": URL must not overlap with disallowed issuers: [https://own]",
            ),
            (
                "/jwt/0/issuer/audiences",
                json!(["x", "y"]),
                "jwt[0].issuer.audienceMatchPolicy: Invalid value: \"\": audienceMatchPolicy must be MatchAny for multiple audiences",
            ),
            (
                "/jwt/0/claimMappings/username",
                json!({}),
                "jwt[0].claimMappings.username: Required value: claim or expression is required",
            ),
            (
                "/jwt/0/claimMappings/username",
                json!({"claim": "sub"}),
                "jwt[0].claimMappings.username.prefix: Required value: prefix is required when claim is set. It can be set to an empty string to disable prefixing",
            ),
        ];
        for (pointer, value, want) in table {
            let mut bad = good.clone();
            *bad.pointer_mut(pointer).unwrap() = value;
            assert_eq!(isopod_api::aggregate(&validate(&bad, &["https://own".into()])), want);
        }
    }
}
