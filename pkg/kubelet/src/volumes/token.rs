//! Service-account tokens of one pod: requested through TokenRequest, kept, and refreshed before they expire.

use crate::pod::PodExt;
use isopod_client::{Calls, Error, Resource};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, ServiceAccountTokenProjection};
use kube::Client;
use serde::Deserialize;
use serde_json::json;
use std::collections::HashMap;

/// A token is refreshed at this part of its life, and at this age at the latest (upstream's token manager).
const REFRESH_AT: f64 = 0.8;
const MAX_AGE: SignedDuration = SignedDuration::from_hours(24);
const DEFAULT_SECONDS: i64 = 3600;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Issued {
    token: String,
    expiration_timestamp: Timestamp,
}

#[derive(Deserialize)]
struct Response {
    status: Issued,
}

struct Kept {
    token: String,
    refresh_at: Timestamp,
    expires: Timestamp,
}

/// The tokens of one pod.
pub struct Tokens {
    calls: Calls,
    kept: HashMap<(String, i64), Kept>,
}

impl Tokens {
    pub fn new(client: Client) -> Self {
        Tokens { calls: Calls::new(client, Resource::namespaced("", "v1", "serviceaccounts")), kept: HashMap::new() }
    }

    /// When the next token wants a refresh.
    pub fn next_refresh(&self) -> Option<Timestamp> {
        self.kept.values().map(|k| k.refresh_at).min()
    }

    pub async fn get(
        &mut self,
        pod: &Pod,
        want: &ServiceAccountTokenProjection,
        now: Timestamp,
    ) -> Result<String, Error> {
        let seconds = want.expiration_seconds.unwrap_or(DEFAULT_SECONDS);
        let audience = want.audience.clone().unwrap_or_default();
        let key = (audience.clone(), seconds);
        if let Some(kept) = self.kept.get(&key).filter(|k| now < k.refresh_at) {
            return Ok(kept.token.clone());
        }
        match self.request(pod, &audience, seconds).await {
            Ok(issued) => {
                let life = issued.expiration_timestamp.duration_since(now);
                let wait =
                    SignedDuration::try_from_secs_f64(life.as_secs_f64() * REFRESH_AT).unwrap_or(life).min(MAX_AGE);
                let kept = Kept { token: issued.token, refresh_at: now + wait, expires: issued.expiration_timestamp };
                let token = kept.token.clone();
                self.kept.insert(key, kept);
                Ok(token)
            }
            // The one that we have is good for a while: try again soon.
            Err(e) => match self.kept.get_mut(&key).filter(|k| now < k.expires) {
                Some(kept) => {
                    tracing::warn!(error = %isopod_base::errors::Chain(&e), "cannot refresh a service-account token");
                    kept.refresh_at = now + SignedDuration::from_secs(60);
                    Ok(kept.token.clone())
                }
                None => Err(e),
            },
        }
    }

    async fn request(&self, pod: &Pod, audience: &str, seconds: i64) -> Result<Issued, Error> {
        let account = pod.spec().service_account_name.as_deref().filter(|s| !s.is_empty()).unwrap_or("default");
        let audiences: Vec<&str> = if audience.is_empty() { vec![] } else { vec![audience] };
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {
                "audiences": audiences, "expirationSeconds": seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.pod_name(), "uid": pod.uid()},
            },
        });
        let response: Response = self.calls.post(pod.ns(), account, "token", &body).await?;
        Ok(response.status)
    }
}
