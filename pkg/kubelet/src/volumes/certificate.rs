//! Certificates of one pod (KEP-4317): a key is made here, a signer is asked through a PodCertificateRequest, and what it
//! issues is kept and replaced in time.
//!
//! Invariant: a key never leaves the node, nor is it on disk but in the pod's own volume, which is in memory.

use super::VolumeError;
use crate::objects::PodObjects;
use crate::pod::PodExt;
use isopod_base::errors::Chain;
use isopod_client::{Calls, Error, Resource};
use isopod_pki::request::{KeyRequest, certificate_pem, certificates, key_and_request};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use k8s_openapi::api::core::v1::{Pod, PodCertificateProjection, ServiceAccount};
use kube::Client;
use serde_json::{Value, json};
use std::collections::HashMap;

/// A request that does not show itself for so long was deleted.
const LOST: SignedDuration = SignedDuration::from_mins(10);
/// Refreshes of a node's pods are spread over this time.
const SPREAD: u64 = 5 * 60;
/// After a failed refresh.
const AGAIN: SignedDuration = SignedDuration::from_secs(60);

/// Which source of which volume a certificate is for.
pub struct Place<'a> {
    pub volume: &'a str,
    pub index: usize,
    pub node_uid: &'a str,
}

/// A key and the chain of its certificate, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub key: String,
    pub chain: String,
}

/// A request that waits for its signer.
#[derive(Debug)]
struct Requested {
    key: String,
    name: String,
    since: Timestamp,
    /// It was seen in the API: when it is there no more, it was deleted.
    seen: bool,
}

impl Requested {
    fn is_lost(&self, now: Timestamp) -> bool {
        self.seen || now >= self.since + LOST
    }
}

#[derive(Debug)]
enum State {
    Waiting(Requested),
    Issued { credential: Credential, refresh_at: Timestamp, next: Option<Requested> },
    Refused { how: &'static str, reason: String, message: String },
}

/// What became of a request.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Pending,
    Issued { chain: String, refresh_at: Timestamp },
    Refused { how: &'static str, reason: String, message: String },
}

/// The certificates of one pod.
pub struct Certificates {
    node: String,
    requests: Calls,
    accounts: Calls,
    kept: HashMap<(String, usize), State>,
}

impl Certificates {
    pub fn new(client: Client, node: &str) -> Self {
        let resource = Resource::namespaced("certificates.k8s.io", "v1", "podcertificaterequests");
        Certificates {
            node: node.to_owned(),
            requests: Calls::new(client.clone(), resource),
            accounts: Calls::new(client, Resource::namespaced("", "v1", "serviceaccounts")),
            kept: HashMap::new(),
        }
    }

    /// When the next certificate wants a refresh.
    pub fn next_refresh(&self) -> Option<Timestamp> {
        let due = self.kept.values().filter_map(|s| match s {
            State::Issued { refresh_at, next: None, .. } => Some(*refresh_at),
            State::Issued { next: Some(r), .. } | State::Waiting(r) if !r.seen => Some(r.since + LOST),
            _ => None,
        });
        due.min()
    }

    /// The credential by now. An error says that there is none yet, or that there will be none.
    pub async fn get(
        &mut self,
        pod: &Pod,
        place: &Place<'_>,
        want: &PodCertificateProjection,
        objects: &mut PodObjects,
        now: Timestamp,
    ) -> Result<Credential, VolumeError> {
        let at = (place.volume.to_owned(), place.index);
        let mut state = match self.kept.remove(&at) {
            Some(state) => state,
            None => State::Waiting(self.request(pod, place, want, now).await?),
        };
        if let State::Waiting(requested) | State::Issued { next: Some(requested), .. } = &mut state {
            match objects.certificate_request(&requested.name).await {
                Some(Some(found)) => {
                    requested.seen = true;
                    state = advance(state, answer(&found));
                }
                Some(None) if requested.is_lost(now) => match state {
                    State::Issued { ref mut next, .. } => *next = None,
                    // The next look asks anew.
                    _ => return Err(VolumeError::NotIssued),
                },
                _ => {}
            }
        }
        if let State::Issued { refresh_at, next, .. } = &mut state
            && next.is_none()
            && now >= *refresh_at
        {
            match self.request(pod, place, want, now).await {
                Ok(requested) => *next = Some(requested),
                Err(e) => {
                    // The one that we have may still be good.
                    tracing::warn!(pod = %pod.display(), error = %Chain(&e), "cannot ask for a new certificate");
                    *refresh_at = now + AGAIN;
                }
            }
        }
        let shown = match &state {
            State::Waiting(_) => Err(VolumeError::NotIssued),
            State::Issued { credential, .. } => Ok(credential.clone()),
            State::Refused { how, reason, message } => {
                Err(VolumeError::Refused { how, reason: reason.clone(), message: message.clone() })
            }
        };
        self.kept.insert(at, state);
        shown
    }

    /// Makes a key and asks the signer for its certificate.
    async fn request(
        &self,
        pod: &Pod,
        place: &Place<'_>,
        want: &PodCertificateProjection,
        now: Timestamp,
    ) -> Result<Requested, VolumeError> {
        let api = |what: String| move |source: Error| VolumeError::Api { what, source };
        let name = pod.spec().service_account_name.as_deref().filter(|s| !s.is_empty()).unwrap_or("default");
        let account = self.accounts.get::<ServiceAccount>(pod.ns(), name).await;
        let account = account.map_err(api(format!("service account {name:?}")))?;
        let kind = want.key_type.clone();
        let made = tokio::task::spawn_blocking(move || key_and_request(&kind)).await;
        let made =
            made.map_err(|e| VolumeError::Io { what: "making a key".into(), source: std::io::Error::other(e) })??;
        let body = self.body(pod, place, want, (name, account.metadata.uid.as_deref().unwrap_or_default()), &made);
        let created: PodCertificateRequest =
            self.requests.create(pod.ns(), &body).await.map_err(api("PodCertificateRequest".into()))?;
        let name = created.metadata.name.unwrap_or_default();
        Ok(Requested { key: made.key_pem, name, since: now, seen: false })
    }

    fn body(
        &self,
        pod: &Pod,
        place: &Place<'_>,
        want: &PodCertificateProjection,
        account: (&str, &str),
        made: &KeyRequest,
    ) -> Value {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": pod.pod_name(), "uid": pod.uid()});
        let mut spec = json!({
            "signerName": want.signer_name,
            "podName": pod.pod_name(), "podUID": pod.uid(),
            "serviceAccountName": account.0, "serviceAccountUID": account.1,
            "nodeName": self.node, "nodeUID": place.node_uid,
            "stubPKCS10Request": ByteString(made.request.clone()),
        });
        if let Some(seconds) = want.max_expiration_seconds {
            spec["maxExpirationSeconds"] = seconds.into();
        }
        if let Some(annotations) = &want.user_annotations {
            spec["unverifiedUserAnnotations"] = json!(annotations);
        }
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "PodCertificateRequest",
            "metadata": {"namespace": pod.ns(), "generateName": "req-", "ownerReferences": [owner]},
            "spec": spec,
        })
    }
}

/// The state after its request was answered.
fn advance(state: State, answer: Answer) -> State {
    match (state, answer) {
        (State::Waiting(r) | State::Issued { next: Some(r), .. }, Answer::Issued { chain, refresh_at }) => {
            State::Issued { credential: Credential { key: r.key, chain }, refresh_at, next: None }
        }
        (_, Answer::Refused { how, reason, message }) => State::Refused { how, reason, message },
        (state, _) => state,
    }
}

fn answer(request: &PodCertificateRequest) -> Answer {
    let Some(status) = &request.status else { return Answer::Pending };
    for c in status.conditions.iter().flatten() {
        let refused = |how| Answer::Refused { how, reason: c.reason.clone(), message: c.message.clone() };
        match c.type_.as_str() {
            "Denied" => return refused("denied"),
            "Failed" => return refused("failed"),
            "Issued" => {
                let chain = certificates(status.certificate_chain.as_deref().unwrap_or_default());
                let begin = status.begin_refresh_at.as_ref().or(status.not_after.as_ref()).map(|t| t.0);
                let name = request.metadata.name.as_deref().unwrap_or_default();
                return Answer::Issued {
                    chain: chain.iter().map(|c| certificate_pem(c)).collect(),
                    refresh_at: begin.unwrap_or(Timestamp::MAX - SignedDuration::from_hours(1)) + spread(name),
                };
            }
            _ => {}
        }
    }
    Answer::Pending
}

/// A part of [`SPREAD`] that differs from request to request.
fn spread(name: &str) -> SignedDuration {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    SignedDuration::from_secs((hash % SPREAD) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requested(name: &str) -> Requested {
        Requested { key: format!("key of {name}"), name: name.to_owned(), since: Timestamp::UNIX_EPOCH, seen: true }
    }

    fn condition(kind: &str, more: Value) -> PodCertificateRequest {
        let mut status = json!({"conditions": [{"type": kind, "status": "True", "reason": "R", "message": "M",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        status.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let spec = json!({"signerName": "s/s", "podName": "p", "podUID": "u", "serviceAccountName": "a",
            "serviceAccountUID": "b", "nodeName": "n", "nodeUID": "m", "stubPKCS10Request": ""});
        serde_json::from_value(json!({"metadata": {"name": "req-1"}, "spec": spec, "status": status})).unwrap()
    }

    #[test]
    fn an_answer_is_read_from_conditions() {
        let chain = format!("noise\n{}", certificate_pem(b"leaf"));
        let issued = condition("Issued", json!({"certificateChain": chain, "beginRefreshAt": "2026-01-01T10:00:00Z"}));
        let Answer::Issued { chain, refresh_at } = answer(&issued) else { panic!("not issued") };
        assert_eq!(chain, certificate_pem(b"leaf"));
        let begin: Timestamp = "2026-01-01T10:00:00Z".parse().unwrap();
        assert!((begin..begin + SignedDuration::from_mins(5)).contains(&refresh_at));
        let refused = Answer::Refused { how: "denied", reason: "R".into(), message: "M".into() };
        assert_eq!(answer(&condition("Denied", json!({}))), refused);
        assert_eq!(answer(&condition("Seen", json!({}))), Answer::Pending);
    }

    #[test]
    fn a_new_certificate_takes_the_place_of_the_old_when_it_is_issued() {
        let issued = |chain: &str| Answer::Issued { chain: chain.into(), refresh_at: Timestamp::UNIX_EPOCH };
        let first = advance(State::Waiting(requested("a")), issued("1"));
        let State::Issued { credential, refresh_at, next: None } = first else { panic!("{first:?}") };
        assert_eq!(credential, Credential { key: "key of a".into(), chain: "1".into() });
        let refreshing = || State::Issued { credential: credential.clone(), refresh_at, next: Some(requested("b")) };
        let State::Issued { credential: kept, next: Some(_), .. } = advance(refreshing(), Answer::Pending) else {
            panic!("it is not kept while the next one is made");
        };
        assert_eq!(kept, credential);
        let State::Issued { credential: second, next: None, .. } = advance(refreshing(), issued("2")) else {
            panic!("it is not replaced");
        };
        assert_eq!(second, Credential { key: "key of b".into(), chain: "2".into() });
    }

    #[test]
    fn a_request_is_lost_when_it_went_or_never_came() {
        let now = Timestamp::UNIX_EPOCH;
        assert!(requested("a").is_lost(now));
        let unseen = Requested { seen: false, ..requested("a") };
        assert!(!unseen.is_lost(now) && unseen.is_lost(now + LOST));
    }
}
