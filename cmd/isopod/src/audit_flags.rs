//! The flags of auditing. Their names and defaults are upstream's.

use crate::args::duration;
use clap::{Args, ValueEnum};
use isopod_apiserver::audit::{self, Batching, Settings, Truncation};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Copy, ValueEnum)]
pub enum Mode {
    Batch,
    Blocking,
    BlockingStrict,
}

impl From<Mode> for audit::Mode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Batch => audit::Mode::Batch,
            Mode::Blocking => audit::Mode::Blocking,
            Mode::BlockingStrict => audit::Mode::BlockingStrict,
        }
    }
}

#[derive(Args)]
#[command(next_help_heading = "Audit")]
pub struct AuditArgs {
    /// What is recorded of which requests: a Policy of audit.k8s.io/v1; without it nothing is
    #[arg(long, value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// Record events here; -: standard output
    #[arg(long, value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// json or legacy
    #[arg(long, default_value = "json", value_name = "FORMAT")]
    pub audit_log_format: String,
    /// Days that old files stay; 0: for ever
    #[arg(long, default_value_t = 366, value_name = "DAYS")]
    pub audit_log_maxage: u32,
    /// How many old files stay; 0: all
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub audit_log_maxbackup: u32,
    /// Size at which the file is put aside; 0: never
    #[arg(long, default_value_t = 100, value_name = "MEGABYTES")]
    pub audit_log_maxsize: u32,
    /// Compress old files
    #[arg(long)]
    pub audit_log_compress: bool,
    /// Version of the events in the log
    #[arg(long, default_value = "audit.k8s.io/v1", value_name = "VERSION")]
    pub audit_log_version: String,
    /// Whether requests wait for their lines
    #[arg(long, value_enum, default_value = "blocking", value_name = "MODE")]
    pub audit_log_mode: Mode,
    /// Events that may wait in mode batch
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub audit_log_batch_buffer_size: usize,
    /// Events of a batch
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub audit_log_batch_max_size: usize,
    /// How long a batch that is not full waits
    #[arg(long, default_value = "0s", value_parser = duration, value_name = "DURATION")]
    pub audit_log_batch_max_wait: Duration,
    /// Limit the rate of batches
    #[arg(long)]
    pub audit_log_batch_throttle_enable: bool,
    /// Batches a second
    #[arg(long, default_value_t = 0.0, value_name = "N")]
    pub audit_log_batch_throttle_qps: f64,
    /// Batches at once after a pause
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub audit_log_batch_throttle_burst: u32,
    /// Take bodies out of events that are too large
    #[arg(long)]
    pub audit_log_truncate_enabled: bool,
    /// Larger events are too large
    #[arg(long, default_value_t = 102_400, value_name = "BYTES")]
    pub audit_log_truncate_max_event_size: usize,
    /// Larger batches are split
    #[arg(long, default_value_t = 10_485_760, value_name = "BYTES")]
    pub audit_log_truncate_max_batch_size: usize,

    /// Send events to the server that this kubeconfig names
    #[arg(long, value_name = "FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// How long to wait before the first repetition
    #[arg(long, default_value = "10s", value_parser = duration, value_name = "DURATION",
          alias = "audit-webhook-batch-initial-backoff")]
    pub audit_webhook_initial_backoff: Duration,
    /// Version of the events that are sent
    #[arg(long, default_value = "audit.k8s.io/v1", value_name = "VERSION")]
    pub audit_webhook_version: String,
    /// Whether requests wait for their events
    #[arg(long, value_enum, default_value = "batch", value_name = "MODE")]
    pub audit_webhook_mode: Mode,
    /// Events that may wait in mode batch
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pub audit_webhook_batch_buffer_size: usize,
    /// Events of a batch
    #[arg(long, default_value_t = 400, value_name = "N")]
    pub audit_webhook_batch_max_size: usize,
    /// How long a batch that is not full waits
    #[arg(long, default_value = "30s", value_parser = duration, value_name = "DURATION")]
    pub audit_webhook_batch_max_wait: Duration,
    /// Limit the rate of batches
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true",
          action = clap::ArgAction::Set, value_name = "BOOL")]
    pub audit_webhook_batch_throttle_enable: bool,
    /// Batches a second
    #[arg(long, default_value_t = 10.0, value_name = "N")]
    pub audit_webhook_batch_throttle_qps: f64,
    /// Batches at once after a pause
    #[arg(long, default_value_t = 15, value_name = "N")]
    pub audit_webhook_batch_throttle_burst: u32,
    /// Take bodies out of events that are too large
    #[arg(long)]
    pub audit_webhook_truncate_enabled: bool,
    /// Larger events are too large
    #[arg(long, default_value_t = 102_400, value_name = "BYTES")]
    pub audit_webhook_truncate_max_event_size: usize,
    /// Larger batches are split
    #[arg(long, default_value_t = 10_485_760, value_name = "BYTES")]
    pub audit_webhook_truncate_max_batch_size: usize,
}

impl AuditArgs {
    pub fn settings(&self) -> Settings {
        Settings {
            policy_file: self.audit_policy_file.clone(),
            log: self.audit_log_path.clone().map(|path| self.log(path)),
            webhook: self.audit_webhook_config_file.clone().map(|file| self.webhook(file)),
        }
    }

    fn log(&self, path: PathBuf) -> audit::Log {
        audit::Log {
            path,
            format: self.audit_log_format.clone(),
            max_age_days: self.audit_log_maxage,
            max_backups: self.audit_log_maxbackup,
            max_size_megabytes: self.audit_log_maxsize,
            compress: self.audit_log_compress,
            version: self.audit_log_version.clone(),
            mode: self.audit_log_mode.into(),
            batching: Batching {
                buffer_size: self.audit_log_batch_buffer_size,
                max_size: self.audit_log_batch_max_size,
                max_wait: self.audit_log_batch_max_wait,
                throttle: self.audit_log_batch_throttle_enable,
                throttle_qps: self.audit_log_batch_throttle_qps,
                throttle_burst: self.audit_log_batch_throttle_burst,
                concurrent: false,
            },
            truncation: Truncation {
                enabled: self.audit_log_truncate_enabled,
                max_event_size: self.audit_log_truncate_max_event_size,
                max_batch_size: self.audit_log_truncate_max_batch_size,
            },
        }
    }

    fn webhook(&self, config_file: PathBuf) -> audit::Webhook {
        audit::Webhook {
            config_file,
            initial_backoff: self.audit_webhook_initial_backoff,
            version: self.audit_webhook_version.clone(),
            mode: self.audit_webhook_mode.into(),
            batching: Batching {
                buffer_size: self.audit_webhook_batch_buffer_size,
                max_size: self.audit_webhook_batch_max_size,
                max_wait: self.audit_webhook_batch_max_wait,
                throttle: self.audit_webhook_batch_throttle_enable,
                throttle_qps: self.audit_webhook_batch_throttle_qps,
                throttle_burst: self.audit_webhook_batch_throttle_burst,
                concurrent: true,
            },
            truncation: Truncation {
                enabled: self.audit_webhook_truncate_enabled,
                max_event_size: self.audit_webhook_truncate_max_event_size,
                max_batch_size: self.audit_webhook_truncate_max_batch_size,
            },
        }
    }
}
