//! Chains from configurations, and how one follows its file (`pkg/kubeapiserver/authorizer/{config,reload}.go`).
//!
//! Invariant: a file that has become bad changes nothing; what is in force stays.

use super::configuration::{Configuration, ConfigurationError, Entry, Flags, Kind};
use super::metrics::AuthorizationMetrics;
use super::webhook::Webhook;
use super::{Asked, AuthorizerChain, Link, Links, masters};
use crate::access::Access;
use arc_swap::ArcSwap;
use isopod_auth::abac::{Abac, PolicyFileError};
use isopod_auth::fixed::{AlwaysAllow, AlwaysDeny};
use isopod_auth::node::NodeAuthorizer;
use isopod_auth::{Authorizer, Rbac};
use isopod_base::reloads::Reloads;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("cannot read the authorization configuration {0:?}")]
    Read(PathBuf, #[source] std::io::Error),
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    #[error(transparent)]
    Policy(#[from] PolicyFileError),
    #[error("authorizer type ABAC needs --authorization-policy-file")]
    NoPolicy,
    #[error("the authorization webhook {name}: {why}")]
    Webhook { name: String, why: String },
    #[error("authorizer type {0} is not allowed if it was not enabled at initial server startup")]
    New(&'static str),
}

/// What chains are made from besides their configuration.
pub struct Builtins {
    pub access: Arc<Access>,
    /// `--authorization-policy-file`.
    pub policy_file: Option<PathBuf>,
    /// How metrics of reloads name this server.
    pub identity: String,
}

/// The authorizers that stay over reloads: those of the first configuration.
struct Parts {
    node: Option<Arc<NodeAuthorizer>>,
    rbac: Option<Arc<Rbac>>,
    abac: Option<Arc<Abac>>,
}

impl Parts {
    fn new(kinds: &BTreeSet<Kind>, builtins: &Builtins) -> Result<Self, LoadError> {
        let abac = match (kinds.contains(&Kind::Abac), &builtins.policy_file) {
            (false, _) => None,
            (true, None) => return Err(LoadError::NoPolicy),
            (true, Some(file)) => Some(Arc::new(Abac::read(file)?)),
        };
        let Access { nodes, rbac, .. } = &*builtins.access;
        let node = kinds.contains(&Kind::Node).then(|| nodes.clone());
        Ok(Parts { node, rbac: kinds.contains(&Kind::Rbac).then(|| rbac.clone()), abac })
    }

    fn links(&self, config: &Configuration, metrics: &AuthorizationMetrics) -> Result<Links, LoadError> {
        let link = |entry: &Entry| -> Result<Link, LoadError> {
            let decisions = Some(metrics.decisions(entry.kind.text(), &entry.name));
            Ok(Link { name: entry.name.clone(), asked: self.asked(entry, metrics)?, decisions })
        };
        std::iter::once(Ok(masters())).chain(config.authorizers.iter().map(link)).collect()
    }

    fn asked(&self, entry: &Entry, metrics: &AuthorizationMetrics) -> Result<Asked, LoadError> {
        fn here<A: Authorizer + 'static>(authorizer: Option<&Arc<A>>) -> Option<Arc<dyn Authorizer>> {
            authorizer.map(|a| a.clone() as Arc<dyn Authorizer>)
        }
        let authorizer: Option<Arc<dyn Authorizer>> = match (entry.kind, &entry.webhook) {
            (Kind::Node, _) => here(self.node.as_ref()),
            (Kind::Rbac, _) => here(self.rbac.as_ref()),
            (Kind::Abac, _) => here(self.abac.as_ref()),
            (Kind::AlwaysAllow, _) => Some(Arc::new(AlwaysAllow)),
            (Kind::AlwaysDeny, _) => Some(Arc::new(AlwaysDeny)),
            (Kind::Webhook, Some(settings)) => {
                let made = Webhook::new(&entry.name, settings.clone(), metrics.clone());
                let made = made.map_err(|why| LoadError::Webhook { name: entry.name.clone(), why })?;
                return Ok(Asked::There(Box::new(made)));
            }
            (Kind::Webhook, None) => None,
        };
        authorizer.map(Asked::Here).ok_or(LoadError::New(entry.kind.text()))
    }
}

/// The file that a chain follows.
pub struct Source {
    path: PathBuf,
    parts: Parts,
    /// What must stay in it.
    required: BTreeSet<Kind>,
    last: Mutex<Last>,
    pub reloads: Reloads,
}

/// What was read last, good or bad, and what was good last.
struct Last {
    text: String,
    config: Configuration,
}

impl AuthorizerChain {
    pub fn from_flags(flags: &Flags, builtins: &Builtins) -> Result<Arc<Self>, LoadError> {
        let config = Configuration::from_flags(flags)?;
        let (metrics, parts) = (AuthorizationMetrics::default(), Parts::new(&config.kinds(), builtins)?);
        let links = ArcSwap::from_pointee(parts.links(&config, &metrics)?);
        Ok(Arc::new(AuthorizerChain { links, metrics, source: None }))
    }

    /// From an `AuthorizationConfiguration`, which [`AuthorizerChain::look`] follows.
    pub fn from_file(path: &Path, builtins: &Builtins) -> Result<Arc<Self>, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|e| LoadError::Read(path.to_owned(), e))?;
        let config = Configuration::parse(&text, &BTreeSet::new())?;
        let (metrics, parts) = (AuthorizationMetrics::default(), Parts::new(&config.kinds(), builtins)?);
        let links = ArcSwap::from_pointee(parts.links(&config, &metrics)?);
        let source = Source {
            path: path.to_owned(),
            required: config.kinds(),
            parts,
            reloads: Reloads::new(&builtins.identity, &text),
            last: Mutex::new(Last { text, config }),
        };
        Ok(Arc::new(AuthorizerChain { links, metrics, source: Some(source) }))
    }

    /// The file that it follows.
    pub fn file(&self) -> Option<&Path> {
        self.source.as_ref().map(|s| s.path.as_path())
    }

    /// Looks at its file once. True: another configuration is in force now.
    pub fn look(&self) -> Result<bool, LoadError> {
        let Some(source) = &self.source else { return Ok(false) };
        let outcome = self.take_in(source);
        if outcome.is_err() {
            source.reloads.failed();
        }
        outcome
    }

    fn take_in(&self, source: &Source) -> Result<bool, LoadError> {
        let text = std::fs::read_to_string(&source.path).map_err(|e| LoadError::Read(source.path.clone(), e))?;
        let mut last = source.last.lock();
        if text == last.text {
            return Ok(false);
        }
        // Whatever it is: it is not tried again until it changes.
        last.text.clone_from(&text);
        let config = Configuration::parse(&text, &source.required)?;
        if config == last.config {
            return Ok(false);
        }
        last.config = config;
        self.links.store(Arc::new(source.parts.links(&last.config, &self.metrics)?));
        source.reloads.succeeded(&text);
        Ok(true)
    }
}
