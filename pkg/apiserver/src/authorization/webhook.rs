//! An authorizer elsewhere: it is sent a `SubjectAccessReview`, and what it says is kept for a while
//! (`apiserver/plugin/pkg/authorizer/webhook`).

use super::Verdict;
use super::conditions::Conditions;
use super::configuration::WebhookSettings;
use super::kept::{Kept, Key};
use super::metrics::{AuthorizationMetrics, CallResult};
use super::review::{Review, Spec, described};
use crate::remote::{Remote, RemoteError, Reply};
use bytes::Bytes;
use isopod_auth::{Attributes, Decision};
use isopod_base::errors::Chain;
use isopod_kinds::access::Access;
use isopod_schema::scalar::duration_text;
use parking_lot::Mutex;
use rand::Rng;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio::time::Instant;

/// Upstream's: how often a call is tried, the first pause, how pauses grow.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
const FACTOR: f64 = 1.5;
const JITTER: f64 = 0.2;
/// Whoever sends more than this may want to fill the memory: what is said of it is not kept.
const MAX_KEPT_QUESTION: usize = 10_000;

/// What is known of an answer without a call.
pub enum Known {
    Said(Verdict),
    Open(Question),
}

/// What a webhook is to be asked.
pub struct Question {
    body: Bytes,
    key: Key,
    /// Whether the answer may be kept.
    keeps: bool,
}

pub struct Webhook {
    name: String,
    remote: Remote,
    settings: WebhookSettings,
    conditions: Conditions,
    kept: Mutex<Kept<Answer>>,
    metrics: AuthorizationMetrics,
}

/// `SubjectAccessReviewStatus`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Answer {
    allowed: bool,
    denied: bool,
    reason: String,
}

impl Answer {
    /// The error is upstream's.
    fn read(body: &[u8]) -> Result<Self, String> {
        let review: Value =
            serde_json::from_slice(body).map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))?;
        match review.text("kind") {
            "" | "SubjectAccessReview" => {}
            "Status" => return Err(review.text("message").to_owned()),
            other => {
                let version = review.text("apiVersion");
                return Err(format!("no kind {other:?} is registered for version {version:?}"));
            }
        }
        let status = &review["status"];
        let (allowed, denied) = (status.flag("allowed"), status.flag("denied"));
        Ok(Answer { allowed, denied, reason: status.text("reason").to_owned() })
    }

    fn verdict(self) -> Verdict {
        let Answer { allowed, denied, reason } = self;
        match (denied, allowed) {
            (true, true) => Verdict {
                decision: Decision::Deny(reason),
                error: "webhook subject access review returned both allow and deny response".to_owned(),
            },
            (true, false) => Decision::Deny(reason).into(),
            (false, true) => Decision::Allow(reason).into(),
            (false, false) => Decision::NoOpinion(reason).into(),
        }
    }
}

impl Webhook {
    pub fn new(name: &str, settings: WebhookSettings, metrics: AuthorizationMetrics) -> Result<Self, String> {
        let kubeconfig = settings.kubeconfig.as_deref().ok_or("it names no kubeconfig")?;
        let remote = Remote::from_kubeconfig(kubeconfig).map_err(|e| Chain(&e).to_string())?;
        let timeout = duration_text(settings.timeout.as_nanos().try_into().unwrap_or(i64::MAX));
        let remote = remote.with_parameter("timeout", &timeout).map_err(|e| Chain(&e).to_string())?;
        let conditions = Conditions::new(settings.conditions.iter().map(String::as_str))?;
        Ok(Webhook { name: name.to_owned(), remote, settings, conditions, kept: Mutex::default(), metrics })
    }

    /// What it says, if nobody has to be called for that.
    pub fn known(&self, a: &Attributes) -> Known {
        if !self.conditions.is_empty() {
            let began = Instant::now();
            let held = self.conditions.hold(&described(a));
            self.metrics.conditions(&self.name, &held, began.elapsed());
            match held {
                Ok(true) => {}
                Ok(false) => return Known::Said(Decision::NoOpinion(String::new()).into()),
                Err(why) => return Known::Said(self.failed(why)),
            }
        }
        let encode = |e: serde_json::Error| Known::Said(self.failed(e.to_string()));
        let spec = match serde_json::to_vec(&Spec::new(a, &self.settings.version)) {
            Ok(spec) => spec,
            Err(e) => return encode(e),
        };
        let key = Sha256::digest(&spec).into();
        if let Some(answer) = self.kept.lock().get(&key, Instant::now()) {
            return Known::Said(answer.verdict());
        }
        let body = match serde_json::to_vec(&Review::new(a, &self.settings.version)) {
            // A line, as upstream's encoder writes.
            Ok(mut body) => {
                body.push(b'\n');
                body.into()
            }
            Err(e) => return encode(e),
        };
        let sent = [&a.namespace, &a.verb, &a.group, &a.version, &a.resource, &a.subresource, &a.name, &a.path];
        let keeps = sent.iter().map(|s| s.len()).sum::<usize>() < MAX_KEPT_QUESTION;
        Known::Open(Question { body, key, keeps })
    }

    /// What the policy says of a webhook that cannot be asked.
    fn failed(&self, error: String) -> Verdict {
        let no = if self.settings.denies_on_failure { Decision::Deny } else { Decision::NoOpinion };
        Verdict { decision: no(String::new()), error }
    }

    pub async fn ask(&self, question: Question) -> Verdict {
        let mut pause = PAUSE;
        for attempt in 1.. {
            let call = Call { webhook: self, began: Instant::now(), result: CallResult::Canceled };
            let failure = match call.make(question.body.clone()).await {
                Ok(answer) => {
                    let settings = &self.settings;
                    let time = if answer.allowed { settings.authorized_ttl } else { settings.unauthorized_ttl };
                    if question.keeps {
                        self.kept.lock().add(question.key, answer.clone(), Instant::now(), time);
                    }
                    return answer.verdict();
                }
                Err(failure) => failure,
            };
            if attempt >= ATTEMPTS || !failure.passes {
                tracing::error!(
                    authorizer = self.name,
                    error = failure.why,
                    "the authorization webhook cannot be asked"
                );
                if !self.settings.denies_on_failure {
                    self.metrics.failed_open(&self.name, failure.result);
                }
                return self.failed(failure.why);
            }
            let jitter = 1.0 + JITTER * rand::rng().random::<f64>();
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            pause = pause.mul_f64(FACTOR);
        }
        self.failed("the webhook was not asked".to_owned())
    }
}

/// Why a call has no answer.
struct Failure {
    why: String,
    result: CallResult,
    /// It may be another time soon.
    passes: bool,
}

/// One call. It is counted when it ends, also when nobody waits for it any more.
struct Call<'a> {
    webhook: &'a Webhook,
    began: Instant,
    result: CallResult,
}

impl Call<'_> {
    async fn make(mut self, body: Bytes) -> Result<Answer, Failure> {
        let Webhook { remote, settings, .. } = self.webhook;
        let told = |why: String| format!("Post {:?}: {why}", remote.url().to_string());
        let outcome = match remote.ask(body, settings.timeout).await {
            Ok(reply @ Reply { code: 200..=206, .. }) => {
                Answer::read(&reply.body).map_err(|why| Failure { why, result: CallResult::Error, passes: false })
            }
            Ok(reply) => Err(Failure {
                why: reply.refusal(),
                result: if reply.code == 504 { CallResult::Timeout } else { CallResult::Error },
                passes: reply.retries || matches!(reply.code, 429 | 500..=502 | 504..=599),
            }),
            Err(RemoteError::Timeout) => {
                let why = told("context deadline exceeded".to_owned());
                Err(Failure { why, result: CallResult::Timeout, passes: false })
            }
            Err(e) => {
                let passes = e.is_reset();
                Err(Failure { why: told(Chain(&e).to_string()), result: CallResult::Error, passes })
            }
        };
        self.result = outcome.as_ref().map_or_else(|failure| failure.result, |_| CallResult::Success);
        outcome
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.webhook.metrics.called(&self.webhook.name, self.result, self.began.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn answers_are_read() {
        let read = |status: Value| {
            let answer = json!({"kind": "SubjectAccessReview", "status": status});
            Answer::read(answer.to_string().as_bytes()).map(Answer::verdict)
        };
        let reason = || "r".to_owned();
        assert_eq!(read(json!({"allowed": true, "reason": "r"})), Ok(Decision::Allow(reason()).into()));
        assert_eq!(read(json!({"denied": true, "reason": "r"})), Ok(Decision::Deny(reason()).into()));
        assert_eq!(read(json!({"reason": "r"})), Ok(Decision::NoOpinion(reason()).into()));
        assert_eq!(Answer::read(b"{}").map(Answer::verdict), Ok(Decision::NoOpinion(String::new()).into()));
        let both = read(json!({"allowed": true, "denied": true})).unwrap();
        assert_eq!(both.decision, Decision::Deny(String::new()));
        assert!(both.error.ends_with("both allow and deny response"));
        assert_eq!(Answer::read(br#"{"kind":"Status","message":"m"}"#), Err("m".to_owned()));
        assert!(Answer::read(br#"{"kind":"Pod","apiVersion":"v1"}"#).unwrap_err().starts_with("no kind \"Pod\""));
        assert!(Answer::read(b"no").unwrap_err().starts_with("couldn't get version/kind; json parse error: "));
    }
}
