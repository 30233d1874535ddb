//! The processor time that servers take while they are under load, and not before: connections cost them much, too.

use anyhow::Context;
use std::time::Duration;

/// The processes of a server.
pub struct Server<'a>(pub &'a [u32]);

impl Server<'_> {
    /// User and system time so far, to a hundredth of a second.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let mut ticks = 0;
        for pid in self.0 {
            let path = format!("/proc/{pid}/stat");
            let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
            ticks += of_stat(&text).with_context(|| format!("{path} has no times"))?;
        }
        // USER_HZ is 100 on every architecture that Linux runs on today.
        Ok(Duration::from_millis(10 * ticks))
    }
}

/// `utime` and `stime` of `/proc/PID/stat` (proc(5)), in ticks. The name before them may hold anything.
fn of_stat(text: &str) -> Option<u64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found() {
        assert_eq!(of_stat("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0 20 0 1 0 5"), Some(42));
        assert_eq!(of_stat("7 (a"), None);
    }
}
