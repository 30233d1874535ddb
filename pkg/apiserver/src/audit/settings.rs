//! How auditing is set up, with upstream's defaults, and what is wrong with a set-up in upstream's words.

use super::batch::Batched;
use super::event::Event;
use super::log::{Format, LogSink, Output};
use super::policy::Policy;
use super::rotation::{Limits, Rotating};
use super::truncate::Truncated;
use super::webhook::WebhookSink;
use super::{Audit, Counters, Sink};
use crate::remote::{Remote, RemoteError};
use async_trait::async_trait;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Whether requests wait for their events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Batch,
    Blocking,
    /// A request whose coming cannot be recorded fails.
    BlockingStrict,
}

#[derive(Clone, Debug)]
pub struct Batching {
    pub buffer_size: usize,
    pub max_size: usize,
    pub max_wait: Duration,
    pub throttle: bool,
    pub throttle_qps: f64,
    pub throttle_burst: u32,
    /// Several batches may be under way at once.
    pub concurrent: bool,
}

#[derive(Clone, Debug)]
pub struct Truncation {
    pub enabled: bool,
    pub max_event_size: usize,
    pub max_batch_size: usize,
}

#[derive(Clone, Debug)]
pub struct Log {
    /// `-`: standard output.
    pub path: PathBuf,
    /// `json` or `legacy`.
    pub format: String,
    pub max_age_days: u32,
    pub max_backups: u32,
    pub max_size_megabytes: u32,
    pub compress: bool,
    pub version: String,
    pub mode: Mode,
    pub batching: Batching,
    pub truncation: Truncation,
}

#[derive(Clone, Debug)]
pub struct Webhook {
    /// A kubeconfig.
    pub config_file: PathBuf,
    pub initial_backoff: Duration,
    pub version: String,
    pub mode: Mode,
    pub batching: Batching,
    pub truncation: Truncation,
}

/// Nothing is recorded without a policy.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub policy_file: Option<PathBuf>,
    pub log: Option<Log>,
    pub webhook: Option<Webhook>,
}

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("loading audit policy file: failed to read file path {0:?}")]
    PolicyFile(PathBuf, #[source] io::Error),
    #[error("loading audit policy file: {1}: from file {0}")]
    Policy(String, String),
    #[error("{0}")]
    Setting(String),
    #[error("cannot open the audit log {0:?}; name another with --audit-log-path")]
    Log(PathBuf, #[source] io::Error),
    #[error("initializing audit webhook")]
    Webhook(#[source] RemoteError),
}

impl Settings {
    pub(super) fn open(&self) -> Result<Option<Audit>, AuditError> {
        self.log.iter().try_for_each(Log::validate)?;
        self.webhook.iter().try_for_each(Webhook::validate)?;
        let Some(file) = &self.policy_file else { return Ok(None) };
        let text = std::fs::read_to_string(file).map_err(|e| AuditError::PolicyFile(file.clone(), e))?;
        let policy = Policy::parse(&text).map_err(|why| AuditError::Policy(file.display().to_string(), why))?;
        let (counters, mut sinks) = (Counters::default(), Vec::new());
        if let Some(log) = &self.log {
            sinks.push(log.sink(&counters)?);
        }
        if let Some(webhook) = &self.webhook {
            sinks.push(webhook.sink(&counters)?);
        }
        Ok((!sinks.is_empty()).then(|| Audit {
            policy,
            sinks,
            ending: TaskTracker::new(),
            closing: CancellationToken::new(),
            counters,
        }))
    }
}

impl Log {
    fn validate(&self) -> Result<(), AuditError> {
        validate("log", self.mode, &self.batching, &self.truncation, &self.version)?;
        if !matches!(self.format.as_str(), "json" | "legacy") {
            let m = format!("invalid audit log format {}, allowed formats are \"legacy,json\"", self.format);
            return Err(AuditError::Setting(m));
        }
        Ok(())
    }

    fn sink(&self, counters: &Counters) -> Result<Box<dyn Sink>, AuditError> {
        let failed = |e| AuditError::Log(self.path.clone(), e);
        let limits = Limits {
            size: u64::from(self.max_size_megabytes) << 20,
            backups: self.max_backups as usize,
            days: i64::from(self.max_age_days),
            compress: self.compress,
        };
        let output = match self.path.to_str() {
            Some("-") => Output::Standard,
            _ => Output::File(Rotating::open(&self.path, limits).map_err(failed)?),
        };
        let format = if self.format == "legacy" { Format::Legacy } else { Format::Json };
        let log = Arc::new(LogSink::start(output, format, counters.clone()).map_err(failed)?);
        Ok(wrap(log, self.mode, &self.batching, &self.truncation, counters))
    }
}

impl Webhook {
    fn validate(&self) -> Result<(), AuditError> {
        validate("webhook", self.mode, &self.batching, &self.truncation, &self.version)
    }

    fn sink(&self, counters: &Counters) -> Result<Box<dyn Sink>, AuditError> {
        let remote = Remote::from_kubeconfig(&self.config_file).map_err(AuditError::Webhook)?;
        let hook = Arc::new(WebhookSink { remote, backoff: self.initial_backoff, counters: counters.clone() });
        Ok(wrap(hook, self.mode, &self.batching, &self.truncation, counters))
    }
}

fn validate(
    plugin: &str,
    mode: Mode,
    batching: &Batching,
    truncation: &Truncation,
    version: &str,
) -> Result<(), AuditError> {
    let wrong = |what: &str, value: &dyn std::fmt::Display| {
        let m = format!("invalid audit batch {plugin} {what} {value}, must be a positive number");
        Err(AuditError::Setting(m))
    };
    if mode == Mode::Batch {
        match batching {
            b if b.buffer_size == 0 => return wrong("buffer size", &b.buffer_size),
            b if b.max_size == 0 => return wrong("max batch size", &b.max_size),
            b if b.throttle && (b.throttle_qps.is_nan() || b.throttle_qps <= 0.0) => {
                return wrong("throttle QPS", &b.throttle_qps);
            }
            b if b.throttle && b.throttle_burst == 0 => return wrong("throttle burst", &b.throttle_burst),
            _ => {}
        }
    }
    let (event, batch) = (truncation.max_event_size, truncation.max_batch_size);
    let wrong = match () {
        () if event == 0 => {
            format!("invalid audit truncate {plugin} max event size {event}, must be a positive number")
        }
        () if batch < event => format!(
            "invalid audit truncate {plugin} max batch size {batch}, must be greater than max event size ({event})"
        ),
        () if version != "audit.k8s.io/v1" => {
            "invalid group version, allowed versions are [\"audit.k8s.io/v1\"]".to_owned()
        }
        () => return Ok(()),
    };
    Err(AuditError::Setting(wrong))
}

fn wrap(
    sink: Arc<dyn Sink>,
    mode: Mode,
    batching: &Batching,
    truncation: &Truncation,
    counters: &Counters,
) -> Box<dyn Sink> {
    let inner: Box<dyn Sink> = match mode {
        Mode::BlockingStrict => Box::new(Insisting(sink)),
        Mode::Blocking => Box::new(Forgiving(sink)),
        Mode::Batch => Box::new(Batched::start(sink, batching.clone(), counters.clone())),
    };
    match truncation.enabled {
        true => Box::new(Truncated { inner, limits: truncation.clone(), counters: counters.clone() }),
        false => inner,
    }
}

struct Insisting(Arc<dyn Sink>);

#[async_trait]
impl Sink for Insisting {
    async fn take(&self, events: Vec<Arc<Event>>) -> bool {
        self.0.take(events).await
    }
}

struct Forgiving(Arc<dyn Sink>);

#[async_trait]
impl Sink for Forgiving {
    async fn take(&self, events: Vec<Arc<Event>>) -> bool {
        self.0.take(events).await;
        true
    }
}
