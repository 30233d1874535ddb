//! Fills secrets of type `kubernetes.io/service-account-token`: with a token of the service account that they name, the cluster's
//! CA and the namespace. Secrets of an account that is gone are deleted, and an account does not list a secret that is gone.
//!
//! Watches service accounts and these secrets; writes both. It does so as the manager itself, as upstream's.

use crate::controller::{Context, Controller, Error, Key};
use crate::op::Op;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use isopod_client::queue::WorkQueue;
use isopod_client::views::{MetaOnly, Secret, ServiceAccount};
use isopod_client::{Change, Informer, ListScope};
use serde_json::{Value, json};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

const NAME: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";

/// Whom a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bearer<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
    pub account_uid: &'a str,
    /// The secret that it will stand in.
    pub secret: &'a str,
}

type Sign = dyn Fn(Bearer<'_>) -> Result<String, String> + Send + Sync;

/// Signs tokens. The error says why it cannot.
#[derive(Clone)]
pub struct TokenIssuer(Arc<Sign>);

impl TokenIssuer {
    pub fn new(sign: impl Fn(Bearer<'_>) -> Result<String, String> + Send + Sync + 'static) -> Self {
        TokenIssuer(Arc::new(sign))
    }
}

impl fmt::Debug for TokenIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenIssuer")
    }
}

struct Tokens {
    context: Context,
    secrets: Informer<Secret>,
    accounts: Informer<MetaOnly>,
    issuer: TokenIssuer,
}

/// Keys are secrets, and `account/secret` for what an account may list that is gone. Without a key to sign with there is nothing
/// to do.
pub async fn run(context: Context) {
    let Some(issuer) = context.options.token_issuer.clone() else { return context.stop.cancelled().await };
    let scope = ListScope::fields("type=kubernetes.io/service-account-token");
    let secrets = context.informers.get::<Secret>(Secret::resource(), scope);
    let accounts = context.informer::<MetaOnly>(ServiceAccount::resource());
    secrets.synced().await;
    accounts.synced().await;
    let queue = WorkQueue::new(context.clock.clone());
    let own = queue.clone();
    context.feed(&secrets, move |change| match change {
        Change::Applied { new: secret, .. } => own.add(Key::of(&secret.metadata)),
        Change::Deleted(secret) => {
            let m = &secret.metadata;
            own.add(Key::new(&m.namespace, &format!("{}/{}", account_of(&secret), m.name)));
        }
        Change::Resync => {}
    });
    let (again, of_account) = (queue.clone(), secrets.clone());
    context.feed(&accounts, move |change| {
        if let Change::Deleted(account) = change {
            let m = &account.metadata;
            let secrets = of_account.list_namespace(&m.namespace);
            let orphans = secrets.iter().filter(|s| account_of(s) == m.name);
            orphans.for_each(|s| again.add(Key::of(&s.metadata)));
        }
    });
    let controller = Arc::new(Tokens { context: context.clone(), secrets, accounts, issuer });
    context.work(controller, queue, 1).await;
}

fn account_of(secret: &Secret) -> &str {
    secret.metadata.annotations.get(NAME).map_or("", String::as_str)
}

/// Whether the account is the one that the secret was made for.
fn fits(secret: &Secret, account: &MetaOnly) -> bool {
    secret.metadata.annotations.get(UID).is_none_or(|uid| uid.is_empty() || *uid == account.metadata.uid)
}

/// What the secret lacks.
fn plan(
    secret: &Secret,
    account: Option<&MetaOnly>,
    root_ca_pem: &str,
    issuer: &TokenIssuer,
) -> Result<Option<Op>, Error> {
    let m = &secret.metadata;
    let Some(account) = account else {
        return Ok(Some(Op::delete(Secret::resource(), &m.namespace, &m.name).if_uid(&m.uid)));
    };
    let is_empty = |key: &str| secret.data.get(key).is_none_or(String::is_empty);
    let mut data = serde_json::Map::new();
    let root_ca = STANDARD.encode(root_ca_pem);
    if !root_ca.is_empty() && secret.data.get("ca.crt") != Some(&root_ca) {
        data.insert("ca.crt".into(), root_ca.into());
    }
    if is_empty("namespace") {
        data.insert("namespace".into(), STANDARD.encode(&m.namespace).into());
    }
    if is_empty("token") {
        let (name, uid) = (&account.metadata.name, &account.metadata.uid);
        let bearer = Bearer { namespace: &m.namespace, account: name, account_uid: uid, secret: &m.name };
        data.insert("token".into(), STANDARD.encode((issuer.0)(bearer).map_err(Error::Token)?).into());
    }
    if data.is_empty() {
        return Ok(None);
    }
    let annotations = json!({NAME: account.metadata.name, UID: account.metadata.uid});
    let change = json!({"data": data, "metadata": {"annotations": annotations}});
    let op = Op::modify(Secret::resource(), &m.namespace, &m.name, change);
    Ok(Some(op.if_uid(&m.uid).if_unchanged(&m.resource_version)))
}

/// The account without a secret that it lists; `None`: it does not.
fn without(account: &Value, secret: &str) -> Option<Op> {
    let listed = account["secrets"].as_array()?;
    let kept: Vec<&Value> = listed.iter().filter(|s| s["name"] != secret).collect();
    let text = |field: &str| account["metadata"][field].as_str().unwrap_or_default();
    let op = Op::modify(ServiceAccount::resource(), text("namespace"), text("name"), json!({"secrets": kept}));
    (kept.len() < listed.len()).then(|| op.if_uid(text("uid")).if_unchanged(text("resourceVersion")))
}

impl Tokens {
    /// As it is now where the informer does not have it: what would follow cannot be taken back.
    async fn account(&self, secret: &Secret) -> Result<Option<MetaOnly>, Error> {
        let (namespace, name) = (&secret.metadata.namespace, account_of(secret));
        if let Some(known) = self.accounts.get(namespace, name).filter(|a| fits(secret, a)) {
            return Ok(Some(MetaOnly::clone(&known)));
        }
        let found = self.context.calls(ServiceAccount::resource()).find::<MetaOnly>(namespace, name).await?;
        Ok(found.filter(|a| fits(secret, a)))
    }
}

#[async_trait]
impl Controller for Tokens {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let op = match key.name.split_once('/') {
            Some((account, secret)) if self.secrets.get(&key.namespace, secret).is_none() => {
                let accounts = self.context.calls(ServiceAccount::resource());
                let account = accounts.find::<Value>(&key.namespace, account).await?;
                account.and_then(|account| without(&account, secret))
            }
            Some(_) => None,
            None => match self.secrets.get(&key.namespace, &key.name) {
                Some(secret) if !secret.metadata.is_being_deleted() => {
                    let account = self.account(&secret).await?;
                    plan(&secret, account.as_ref(), &self.context.options.root_ca_pem, &self.issuer)?
                }
                _ => None,
            },
        };
        if let Some(op) = op {
            self.context.apply(&op).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer() -> TokenIssuer {
        TokenIssuer::new(|b| Ok(format!("{}/{} {} {}", b.namespace, b.account, b.account_uid, b.secret)))
    }

    fn secret(data: Value) -> Secret {
        let metadata =
            json!({"name": "s", "namespace": "n", "uid": "u", "resourceVersion": "7", "annotations": {NAME: "sa"}});
        serde_json::from_value(json!({"metadata": metadata, "data": data})).unwrap()
    }

    fn account() -> MetaOnly {
        serde_json::from_value(json!({"metadata": {"name": "sa", "namespace": "n", "uid": "a"}})).unwrap()
    }

    fn planned(secret: &Secret, account: Option<&MetaOnly>) -> Option<String> {
        plan(secret, account, "PEM", &issuer()).unwrap().map(|op| op.to_string())
    }

    #[test]
    fn secrets_get_what_they_lack() {
        let text = |t: &str| STANDARD.encode(t);
        let all = json!({"ca.crt": text("PEM"), "namespace": text("n"), "token": text("x")});
        assert_eq!(planned(&secret(all.clone()), Some(&account())), None);
        let op = planned(&secret(json!({})), Some(&account())).unwrap();
        for part in [text("PEM"), text("n"), text("n/sa a s"), format!("\"{UID}\":\"a\"")] {
            assert!(op.starts_with("modify secrets n/s") && op.contains(&part), "{part}: {op}");
        }
        let mut old = all;
        old["ca.crt"] = text("OLD").into();
        let op = planned(&secret(old), Some(&account())).unwrap();
        assert!(op.contains(&text("PEM")) && !op.contains("\"token\""), "a token stays: {op}");
    }

    #[test]
    fn secrets_of_nobody_go() {
        let op = planned(&secret(json!({})), None).unwrap();
        assert!(op.starts_with("delete secrets n/s"), "{op}");
        let mut other = secret(json!({}));
        assert!(fits(&other, &account()));
        other.metadata.annotations.insert(UID.into(), "b".into());
        assert!(!fits(&other, &account()));
    }

    #[test]
    fn accounts_list_no_secret_that_is_gone() {
        let account = json!({"metadata": {"name": "sa", "namespace": "n", "uid": "a"},
            "secrets": [{"name": "s"}, {"name": "t"}]});
        let op = without(&account, "s").unwrap().to_string();
        assert!(op.starts_with("modify serviceaccounts n/sa") && op.contains(r#"{"secrets":[{"name":"t"}]}"#), "{op}");
        assert!(without(&account, "x").is_none());
    }
}
