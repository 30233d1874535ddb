//! Retires tokens in secrets that releases before v1.24 made for each service account and that nobody uses (KEP-2799): one that
//! was not used for a year is marked invalid, and deleted a year later.
//!
//! Reads the API server's record of last uses; marks and deletes secrets. Invariants: what a person made, what a pod mounts, and
//! what may have been used before uses were recorded stays.

use crate::controller::{Context, Error};
use crate::op::Op;
use isopod_api::time;
use isopod_base::errors::Chain;
use isopod_client::views::Meta;
use isopod_client::{Calls, ListScope, Patch, Resource};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const TRACKING: (&str, &str) = ("kube-system", "kube-apiserver-legacy-service-account-token-tracking");
/// `--legacy-service-account-token-clean-up-period`.
pub const CLEAN_UP_PERIOD: SignedDuration = SignedDuration::from_hours(365 * 24);
const INTERVAL: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Secret {
    metadata: Meta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Account {
    metadata: Meta,
    secrets: Vec<Reference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reference {
    name: String,
}

pub async fn run(context: Context) {
    loop {
        if let Err(e) = evaluate(&context).await {
            tracing::warn!(error = %Chain(&e), "cannot look for tokens in secrets that nobody uses");
        }
        if context.stop.run_until_cancelled(context.clock.sleep(INTERVAL)).await.is_none() {
            return;
        }
    }
}

async fn evaluate(context: &Context) -> Result<(), Error> {
    let now = context.clock.now();
    let (namespace, name) = TRACKING;
    let Some(tracking) = calls(context, "configmaps").find::<Value>(namespace, name).await? else { return Ok(()) };
    let Some(since) = tracking["data"]["since"].as_str().and_then(time::parse_date) else { return Ok(()) };
    if !is_tracked_long_enough(since, now) {
        return Ok(());
    }
    let of_accounts = ListScope::fields("type=kubernetes.io/service-account-token");
    let mut mounted: HashMap<String, BTreeSet<String>> = HashMap::new();
    for secret in calls(context, "secrets").list::<Secret>(&of_accounts).await? {
        let m = &secret.metadata;
        if !may_be_unused(m, now) {
            continue;
        }
        let account_name = m.annotations.get("kubernetes.io/service-account.name").map_or("", String::as_str);
        let account = match account_name {
            "" => None,
            name => calls(context, "serviceaccounts").find::<Account>(&m.namespace, name).await?,
        };
        if !account.is_some_and(|a| is_made_for(m, &a)) {
            continue;
        }
        if !mounted.contains_key(&m.namespace) {
            let pods = calls(context, "pods").list::<Value>(&ListScope::namespace(&*m.namespace)).await?;
            mounted.insert(m.namespace.clone(), pods.iter().flat_map(secrets_of).collect());
        }
        if mounted[&m.namespace].contains(&m.name) {
            continue;
        }
        if let Some(op) = retire(m, now)
            && let Err(e) = context.apply(&op).await
            && !e.api().is_some_and(|e| e.is_conflict() || e.is_not_found())
        {
            tracing::warn!(secret = m.name, namespace = m.namespace, error = %Chain(&e), "cannot retire a token");
        }
    }
    Ok(())
}

/// Reads as the manager: this controller's own rights are to write.
fn calls(context: &Context, resource: &'static str) -> Calls {
    Calls::new(context.informers.client().clone(), Resource::namespaced("", "v1", resource))
}

/// Uses were recorded for the whole period, from the day after the record began.
fn is_tracked_long_enough(since: Date, now: Timestamp) -> bool {
    let began = since.tomorrow().ok().and_then(|day| day.to_zoned(TimeZone::UTC).ok());
    began.is_some_and(|began| now.duration_since(began.timestamp()) >= CLEAN_UP_PERIOD)
}

fn limit(now: Timestamp) -> Timestamp {
    now.saturating_sub(CLEAN_UP_PERIOD).unwrap_or(now)
}

/// Whether its token is old enough, and was not used in the period.
fn may_be_unused(secret: &Meta, now: Timestamp) -> bool {
    if secret.is_being_deleted() || time::parse(&secret.creation_timestamp).is_none_or(|made| made >= limit(now)) {
        return false;
    }
    match secret.labels.get(LAST_USED) {
        Some(day) => time::parse_date(day).is_some() && *day < time::format_date(limit(now)),
        // Never, since uses are recorded.
        None => true,
    }
}

/// Whether the secret is one that the cluster made for the account, which lists it then.
fn is_made_for(secret: &Meta, account: &Account) -> bool {
    let uid = secret.annotations.get("kubernetes.io/service-account.uid").map_or("", String::as_str);
    (uid.is_empty() || uid == account.metadata.uid) && account.secrets.iter().any(|s| s.name == secret.name)
}

/// Marks an unused token invalid, or deletes it when it was so for the period.
fn retire(secret: &Meta, now: Timestamp) -> Option<Op> {
    let resource = Resource::namespaced("", "v1", "secrets");
    let marked = secret.labels.get(INVALID_SINCE).filter(|day| time::parse_date(day).is_some());
    let Some(marked) = marked else {
        let label = json!({"metadata": {"labels": {INVALID_SINCE: time::format_date(now)}}});
        return Some(Op::patch(resource, &secret.namespace, &secret.name, Patch::Merge(label)).if_uid(&secret.uid));
    };
    let is_over = *marked < time::format_date(limit(now));
    is_over.then(|| Op::delete(resource, &secret.namespace, &secret.name).if_unchanged(&secret.resource_version))
}

/// Where volumes name secrets.
const OF_VOLUMES: [&str; 11] = [
    "/azureFile/secretName",
    "/cephfs/secretRef/name",
    "/cinder/secretRef/name",
    "/flexVolume/secretRef/name",
    "/rbd/secretRef/name",
    "/secret/secretName",
    "/scaleIO/secretRef/name",
    "/iscsi/secretRef/name",
    "/storageos/secretRef/name",
    "/csi/nodePublishSecretRef/name",
    "/secret/name",
];

/// The names of the secrets that a pod refers to.
fn secrets_of(pod: &Value) -> Vec<String> {
    fn list<'a>(v: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
        v[key].as_array().into_iter().flatten()
    }
    let spec = &pod["spec"];
    let containers =
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|key| list(spec, key));
    let of_containers = containers.flat_map(|c| {
        let whole = list(c, "envFrom").map(|e| &e["secretRef"]["name"]);
        whole.chain(list(c, "env").map(|e| &e["valueFrom"]["secretKeyRef"]["name"]))
    });
    let sources = list(spec, "volumes").flat_map(|v| std::iter::once(v).chain(list(&v["projected"], "sources")));
    let of_volumes = sources.flat_map(|source| OF_VOLUMES.iter().filter_map(|pointer| source.pointer(pointer)));
    let all = list(spec, "imagePullSecrets").map(|r| &r["name"]).chain(of_containers).chain(of_volumes);
    all.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2027-06-01T12:00:00Z".parse().unwrap()
    }

    fn secret(labels: Value) -> Meta {
        let meta = json!({"name": "s", "namespace": "n", "uid": "u", "resourceVersion": "7", "labels": labels,
            "creationTimestamp": "2020-01-01T00:00:00Z",
            "annotations": {"kubernetes.io/service-account.name": "sa", "kubernetes.io/service-account.uid": "a"}});
        serde_json::from_value(meta).unwrap()
    }

    #[test]
    fn uses_are_recorded_for_the_period() {
        let since = |day: &str| is_tracked_long_enough(time::parse_date(day).unwrap(), now());
        assert!(since("2026-05-30") && since("2026-05-31"));
        assert!(!since("2026-06-01") && !since("2027-01-01"));
    }

    #[test]
    fn what_was_used_lately_stays() {
        let unused = |labels: Value| may_be_unused(&secret(labels), now());
        assert!(unused(json!({})) && unused(json!({LAST_USED: "2026-05-31"})));
        assert!(!unused(json!({LAST_USED: "2026-06-01"})) && !unused(json!({LAST_USED: "soon"})));
        let young = Meta { creation_timestamp: "2027-01-01T00:00:00Z".into(), ..secret(json!({})) };
        assert!(!may_be_unused(&young, now()));
    }

    #[test]
    fn what_a_person_made_stays() {
        let account = |uid: &str, listed: &str| Account {
            metadata: Meta { uid: uid.into(), ..Meta::default() },
            secrets: vec![Reference { name: listed.into() }],
        };
        assert!(is_made_for(&secret(json!({})), &account("a", "s")));
        assert!(!is_made_for(&secret(json!({})), &account("a", "other")));
        assert!(!is_made_for(&secret(json!({})), &account("b", "s")));
    }

    #[test]
    fn tokens_are_marked_and_a_year_later_deleted() {
        let retired = |labels: Value| retire(&secret(labels), now()).map(|op| op.to_string());
        let marked = retired(json!({})).unwrap();
        assert!(marked.starts_with("patch secrets n/s") && marked.contains("2027-06-01"), "{marked}");
        assert_eq!(retired(json!({INVALID_SINCE: "today"})), Some(marked));
        assert_eq!(retired(json!({INVALID_SINCE: "2026-06-01"})), None);
        let deleted = retired(json!({INVALID_SINCE: "2026-05-31"})).unwrap();
        assert!(deleted.starts_with("delete secrets n/s"), "{deleted}");
    }

    #[test]
    fn pods_refer_to_secrets() {
        let pod = json!({"spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "from"}}, {"configMapRef": {"name": "no"}}]}],
            "containers": [{"env": [{"valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}, {"value": "no"}]}],
            "volumes": [
                {"name": "no", "secret": {"secretName": "volume"}},
                {"name": "no", "projected": {"sources": [{"secret": {"name": "projected"}}, {"configMap": {"name": "no"}}]}},
                {"name": "no", "csi": {"nodePublishSecretRef": {"name": "csi"}}},
            ],
        }});
        assert_eq!(secrets_of(&pod), ["pull", "from", "key", "volume", "projected", "csi"]);
    }
}
