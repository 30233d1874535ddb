//! Who may do what: authorizers one after another, as flags or an `AuthorizationConfiguration` order them. The first that has
//! an opinion decides (`apiserver/pkg/authorization/union`, `pkg/kubeapiserver/authorizer`).
//!
//! Invariants: members of `system:masters` are let through before all others; a request is decided by one chain from its
//! beginning to its end, also while the file that orders it changes; what is wrong with a webhook never allows anything.

mod conditions;
mod configuration;
mod kept;
mod load;
mod metrics;
mod review;
mod webhook;

pub use configuration::{ConfigurationError, Flags};
pub use load::{Builtins, LoadError};

use arc_swap::ArcSwap;
use isopod_api::UserInfo;
use isopod_auth::fixed::Masters;
use isopod_auth::{Attributes, Authorizer, Decision, Rules, aggregate_text};
use load::Source;
use metrics::{AuthorizationMetrics, Decisions};
use prometheus_client::registry::Registry;
use std::sync::Arc;
use webhook::{Known, Webhook};

/// What the authorizers say, and what went wrong meanwhile: upstream's sentence, or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    pub error: String,
}

impl From<Decision> for Verdict {
    fn from(decision: Decision) -> Self {
        Verdict { decision, error: String::new() }
    }
}

impl Verdict {
    pub fn is_allowed(&self) -> bool {
        matches!(self.decision, Decision::Allow(_))
    }

    fn is_opinion(&self) -> bool {
        !matches!(self.decision, Decision::NoOpinion(_))
    }
}

/// One authorizer of a chain.
struct Link {
    name: String,
    asked: Asked,
    /// `None`: what it decides is not counted.
    decisions: Option<Decisions>,
}

enum Asked {
    /// It decides from memory.
    Here(Arc<dyn Authorizer>),
    There(Box<Webhook>),
}

impl Link {
    /// What it says, as far as nobody has to be called for that.
    fn known(&self, attributes: &Attributes) -> Known {
        match &self.asked {
            Asked::Here(authorizer) => Known::Said(authorizer.authorize(attributes).into()),
            Asked::There(webhook) => webhook.known(attributes),
        }
    }

    async fn ask(&self, attributes: &Attributes) -> Verdict {
        match (self.known(attributes), &self.asked) {
            (Known::Said(verdict), _) => verdict,
            (Known::Open(question), Asked::There(webhook)) => webhook.ask(question).await,
            // Only webhooks leave questions open.
            (Known::Open(_), Asked::Here(authorizer)) => authorizer.authorize(attributes).into(),
        }
    }
}

/// What was said until somebody has an opinion.
#[derive(Default)]
struct Undecided {
    reasons: Vec<String>,
    errors: Vec<String>,
}

impl Undecided {
    /// The verdict that this answer is; `None`: the next one is to be asked.
    fn hear(&mut self, link: &Link, verdict: Verdict) -> Option<Verdict> {
        if let Some(decisions) = &link.decisions {
            decisions.count(&verdict.decision);
        }
        if verdict.is_opinion() {
            return Some(verdict);
        }
        if let Decision::NoOpinion(reason) = verdict.decision
            && !reason.is_empty()
        {
            self.reasons.push(format!("{}: {reason}", link.name));
        }
        if !verdict.error.is_empty() {
            self.errors.push(verdict.error);
        }
        None
    }

    /// Nobody had one.
    fn end(self) -> Verdict {
        let error = if self.errors.is_empty() { String::new() } else { aggregate_text(&self.errors) };
        Verdict { decision: Decision::NoOpinion(self.reasons.join("\n")), error }
    }
}

type Links = Vec<Link>;

/// See the module.
pub struct AuthorizerChain {
    links: ArcSwap<Links>,
    metrics: AuthorizationMetrics,
    /// Where its order comes from, if that may change.
    source: Option<Source>,
}

impl AuthorizerChain {
    /// One authorizer alone, after `system:masters`.
    pub fn only(name: &str, authorizer: Arc<dyn Authorizer>) -> Arc<Self> {
        Self::of([(name, authorizer)])
    }

    /// Authorizers that decide from memory, after `system:masters`.
    pub fn of<'a>(authorizers: impl IntoIterator<Item = (&'a str, Arc<dyn Authorizer>)>) -> Arc<Self> {
        let link = |(name, authorizer): (&str, Arc<dyn Authorizer>)| Link {
            name: name.to_owned(),
            asked: Asked::Here(authorizer),
            decisions: None,
        };
        let links = std::iter::once(masters()).chain(authorizers.into_iter().map(link)).collect();
        Arc::new(AuthorizerChain {
            links: ArcSwap::from_pointee(links),
            metrics: AuthorizationMetrics::default(),
            source: None,
        })
    }

    pub(crate) fn register(&self, registry: &mut Registry) {
        self.metrics.register(registry);
        if let Some(source) = &self.source {
            crate::reload::register(&source.reloads, "authorization", registry);
        }
    }

    /// What they say.
    pub(crate) async fn authorize(&self, attributes: &Attributes) -> Verdict {
        let links = self.links.load_full();
        let mut undecided = Undecided::default();
        for link in links.iter() {
            let said = link.ask(attributes).await;
            if let Some(verdict) = undecided.hear(link, said) {
                return verdict;
            }
        }
        undecided.end()
    }

    /// What they say, if nobody has to be called for that.
    pub(crate) fn authorize_now(&self, attributes: &Attributes) -> Option<Verdict> {
        let links = self.links.load();
        let mut undecided = Undecided::default();
        for link in links.iter() {
            let Known::Said(said) = link.known(attributes) else { return None };
            if let Some(verdict) = undecided.hear(link, said) {
                return Some(verdict);
            }
        }
        Some(undecided.end())
    }

    /// What all of them together would allow a user in a namespace.
    pub(crate) fn rules_for(&self, user: &UserInfo, namespace: &str) -> Rules {
        let mut all = Rules::default();
        for link in self.links.load().iter() {
            match &link.asked {
                Asked::Here(authorizer) => {
                    let Rules { rules, errors } = authorizer.rules_for(user, namespace);
                    all.rules.extend(rules);
                    all.errors.extend(errors);
                }
                Asked::There(_) => {
                    all.errors.push("webhook authorizer does not support user rule resolution".to_owned());
                }
            }
        }
        all
    }
}

fn masters() -> Link {
    let asked = Asked::Here(Arc::new(Masters));
    Link { name: "kubernetes.io/system-privileged-group".to_owned(), asked, decisions: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Says(Decision);
    impl Authorizer for Says {
        fn authorize(&self, _: &Attributes) -> Decision {
            self.0.clone()
        }
    }

    #[tokio::test]
    async fn the_first_opinion_decides() {
        let no = |r: &str| Decision::NoOpinion(r.into());
        let (yes, deny) = (Decision::Allow("a".into()), Decision::Deny("d".into()));
        let table = [
            (vec![no("x"), yes.clone(), deny.clone()], yes.clone()),
            (vec![deny.clone(), yes], deny),
            (vec![no("x"), no(""), no("y")], no("a: x\na: y")),
            (vec![], no("")),
        ];
        for (says, want) in table {
            let says = says.into_iter().map(|d| ("a", Arc::new(Says(d)) as Arc<dyn Authorizer>));
            let chain = AuthorizerChain::of(says);
            assert_eq!(chain.authorize(&Attributes::default()).await, want.clone().into());
            assert_eq!(chain.authorize_now(&Attributes::default()), Some(want.into()));
        }
        let chain = AuthorizerChain::only("a", Arc::new(Says(Decision::Deny(String::new()))));
        let attributes = Attributes { user: UserInfo::new("x", &["system:masters"]), ..Default::default() };
        assert!(chain.authorize(&attributes).await.is_allowed());
    }
}
