//! Tracing set-up: one line an event to stderr, plain or JSON, filtered by `ISOPOD_LOG` or a flag.

use tracing_subscriber::EnvFilter;

/// `level` is a tracing filter (`info`, `debug`, `isopod_kubelet=trace,info`). Call once.
pub fn init(level: &str, json: bool) -> Result<(), InvalidFilter> {
    let filter = EnvFilter::try_new(level).map_err(|e| InvalidFilter { level: level.to_owned(), source: e.into() })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // A second call (tests) keeps the first subscriber.
    let _ = if json { builder.json().try_init() } else { builder.with_target(false).try_init() };
    Ok(())
}

#[derive(Debug, thiserror::Error)]
#[error("invalid log filter {level:?}: write a level (error, warn, info, debug, trace) or target=level,…")]
pub struct InvalidFilter {
    level: String,
    source: Box<dyn std::error::Error + Send + Sync>,
}
