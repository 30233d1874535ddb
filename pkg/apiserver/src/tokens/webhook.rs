//! A server that knows tokens (`--authentication-token-webhook-config-file`): it is sent a `TokenReview`. What it says is
//! kept for a while.

use super::{Known, Remarks, TokenSource, implicit};
use crate::ApiServer;
use crate::remote::{Remote, RemoteError};
use async_trait::async_trait;
use isopod_api::UserInfo;
use isopod_base::errors::Chain;
use isopod_kinds::access::Access;
use parking_lot::Mutex;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// Upstream's: how long a call may take, how often it is tried, and the first pause.
const TIMEOUT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// More answers are not kept.
const MAX_KEPT: usize = 10_000;

type Answer = Result<Option<Known>, String>;

pub struct TokenWebhook {
    remote: Remote,
    /// `v1` or `v1beta1`.
    version: String,
    ttl: Duration,
    /// Answers by a digest of token and audiences: tokens are not kept.
    kept: Mutex<HashMap<[u8; 32], (Instant, Answer)>>,
}

impl TokenWebhook {
    pub fn new(kubeconfig: &Path, version: &str, ttl: Duration) -> Result<Self, RemoteError> {
        if !matches!(version, "v1" | "v1beta1") {
            let m = format!(
                "unsupported authentication webhook version {version:?}, supported versions are \"v1\", \"v1beta1\""
            );
            return Err(RemoteError::Kubeconfig(kubeconfig.to_owned(), m));
        }
        let remote = Remote::from_kubeconfig(kubeconfig)?;
        Ok(TokenWebhook { remote, version: version.to_owned(), ttl, kept: Mutex::default() })
    }

    /// What the webhook says. An outage is `Err`.
    async fn ask(&self, token: &str, audiences: &[String]) -> Result<Value, String> {
        let review = json!({
            "kind": "TokenReview", "apiVersion": format!("authentication.k8s.io/{}", self.version),
            "metadata": {}, "spec": {"token": token, "audiences": audiences}, "status": {"user": {}},
        });
        let mut pause = PAUSE;
        for attempt in 1.. {
            let why = match self.remote.post(review.to_string().into(), TIMEOUT).await {
                Ok((200..=299, bytes)) => return serde_json::from_slice(&bytes).map_err(|e| e.to_string()),
                Ok((code, _)) if !matches!(code, 429 | 500..=599) => {
                    return Err(format!("the webhook answered {code}"));
                }
                Ok((code, _)) => format!("the webhook answered {code}"),
                Err(e) => Chain(&e).to_string(),
            };
            if attempt >= ATTEMPTS {
                tracing::error!(url = %self.remote.url(), why, "the authentication webhook cannot be asked");
                return Err(why);
            }
            tokio::time::sleep(pause).await;
            pause = pause.mul_f64(1.5);
        }
        Err("the webhook was not asked".into())
    }
}

fn key(token: &str, audiences: &[String]) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(token.as_bytes());
    for audience in audiences {
        digest.update([0]);
        digest.update(audience.as_bytes());
    }
    digest.finalize().into()
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What an answer means. `own`: the audiences of a token of which the webhook names none.
fn read(review: &Value, wanted: &[String], own: Option<Vec<String>>) -> Answer {
    let status = &review["status"];
    let said = texts(&status["audiences"]);
    let good: Vec<String> = match said.is_empty() {
        true => own.unwrap_or_default(),
        false => wanted.iter().filter(|a| said.contains(a)).cloned().collect(),
    };
    if good.is_empty() && !wanted.is_empty() {
        return Ok(None);
    }
    if status["authenticated"] != true {
        return match status.text("error") {
            "" => Ok(None),
            why => Err(why.to_owned()),
        };
    }
    let user = &status["user"];
    let extra: BTreeMap<String, Vec<String>> =
        user["extra"].as_object().into_iter().flatten().map(|(k, v)| (k.clone(), texts(v))).collect();
    let user = UserInfo {
        name: user.text("username").to_owned(),
        uid: user.text("uid").to_owned(),
        groups: texts(&user["groups"]),
        extra,
    };
    Ok(Some(Known { user, audiences: good }))
}

#[async_trait]
impl TokenSource for TokenWebhook {
    async fn known(&self, server: &ApiServer, token: &str, audiences: &[String], _remarks: &Remarks<'_>) -> Answer {
        let key = key(token, audiences);
        let fresh = |at: &Instant| at.elapsed() < self.ttl;
        if let Some((_, answer)) = self.kept.lock().get(&key).filter(|(at, _)| fresh(at)) {
            return answer.clone();
        }
        // An outage is not kept.
        let review = self.ask(token, audiences).await?;
        let answer = read(&review, audiences, implicit(server, audiences));
        let mut kept = self.kept.lock();
        if kept.len() >= MAX_KEPT {
            kept.retain(|_, (at, _)| fresh(at));
        }
        if kept.len() < MAX_KEPT {
            kept.insert(key, (Instant::now(), answer.clone()));
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let wanted = ["api".to_owned(), "other".to_owned()];
        let own = Some(vec!["api".to_owned()]);
        let yes = json!({"status": {"authenticated": true, "user": {"username": "jane", "extra": {"a": ["b"]}}}});
        let known = read(&yes, &wanted, own.clone()).unwrap().unwrap();
        assert_eq!((known.user.name.as_str(), known.audiences), ("jane", vec!["api".to_owned()]));
        assert_eq!(known.user.extra["a"], ["b"]);
        assert_eq!(read(&yes, &wanted, None), Ok(None), "the token is for this server, which was not asked for");
        let mut for_other = yes.clone();
        for_other["status"]["audiences"] = json!(["other", "third"]);
        assert_eq!(read(&for_other, &wanted, own.clone()).unwrap().unwrap().audiences, ["other"]);
        let no = json!({"status": {"authenticated": false, "error": "expired"}});
        assert_eq!(read(&no, &wanted, own.clone()), Err("expired".into()));
        assert_eq!(read(&json!({}), &wanted, own), Ok(None));
    }

    #[test]
    fn keys_tell_audiences_apart() {
        assert_ne!(key("a", &["b".into(), "c".into()]), key("a", &["bc".into()]));
        assert_ne!(key("ab", &[]), key("a", &["b".into()]));
    }
}
