//! Events as lines of a file or of standard output.

use super::event::Event;
use super::rotation::Rotating;
use super::{Counters, Sink};
use async_trait::async_trait;
use isopod_base::errors::Chain;
use std::io::{self, Write};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Json,
    Legacy,
}

pub enum Output {
    Standard,
    File(Rotating),
}

impl Output {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        match self {
            Output::Standard => io::stdout().lock().write_all(line),
            Output::File(file) => file.write(line),
        }
    }
}

/// Lines to write, and who wants to know how that went.
type Job = (Vec<u8>, oneshot::Sender<io::Result<()>>);

/// The file belongs to a thread: a slow disk delays the requests that wait for their lines, and no others.
pub struct LogSink {
    jobs: mpsc::Sender<Job>,
    format: Format,
    counters: Counters,
}

/// Requests wait when so many are before them.
const QUEUE: usize = 1024;

impl LogSink {
    pub fn start(mut output: Output, format: Format, counters: Counters) -> io::Result<Self> {
        let (jobs, mut queue) = mpsc::channel::<Job>(QUEUE);
        std::thread::Builder::new().name("audit-log".into()).spawn(move || {
            while let Some((lines, told)) = queue.blocking_recv() {
                // Nobody may be waiting any more.
                let _ = told.send(output.write(&lines));
            }
        })?;
        Ok(LogSink { jobs, format, counters })
    }

    async fn write(&self, line: Vec<u8>) -> io::Result<()> {
        let (tell, told) = oneshot::channel();
        let gone = || io::Error::other("the thread that writes the audit log has ended");
        self.jobs.send((line, tell)).await.map_err(|_| gone())?;
        told.await.unwrap_or_else(|_| Err(gone()))
    }
}

#[async_trait]
impl Sink for LogSink {
    async fn take(&self, events: Vec<Arc<Event>>) -> bool {
        let mut all = true;
        for event in events {
            let line = match self.format {
                Format::Json => event.json_line(),
                Format::Legacy => (event.legacy_line() + "\n").into_bytes(),
            };
            if let Err(e) = self.write(line).await {
                self.counters.failed("log", &Chain(&e).to_string(), &[event]);
                all = false;
            }
        }
        all
    }
}
