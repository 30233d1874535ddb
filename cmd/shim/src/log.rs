//! A container's log in CRI's format: `<RFC 3339 time> <stream> <F|P> <text>`, `P` marking a line that goes on.
//!
//! Invariant: a line is written with one call, so that a reader never sees half of one that is whole.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Longer lines are cut into partial ones (containerd's limit, which readers of CRI logs expect).
const MAX_LINE: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

pub struct Log {
    path: PathBuf,
    file: File,
    /// What each stream has begun and not ended with a newline.
    begun: [Vec<u8>; 2],
}

impl Log {
    pub fn open(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        Ok(Log { path: path.into(), file: append(path)?, begun: [vec![], vec![]] })
    }

    /// After the file was moved away.
    pub fn reopen(&mut self) -> io::Result<()> {
        self.file = append(&self.path)?;
        Ok(())
    }

    /// A full disk must not stop the container: what cannot be written is lost.
    pub fn write(&mut self, stream: Stream, data: &[u8]) {
        let begun = &mut self.begun[stream as usize];
        let mut out = Vec::with_capacity(data.len() + 64);
        let now = timestamp(SystemTime::now());
        for piece in data.split_inclusive(|b| *b == b'\n') {
            begun.extend_from_slice(piece);
            let whole = begun.last() == Some(&b'\n');
            if whole {
                begun.pop();
            }
            let mut rest = begun.as_slice();
            while rest.len() > MAX_LINE {
                line(&mut out, &now, stream, b'P', &rest[..MAX_LINE]);
                rest = &rest[MAX_LINE..];
            }
            if whole {
                line(&mut out, &now, stream, b'F', rest);
                begun.clear();
            } else {
                *begun = rest.to_vec();
            }
        }
        let _ = self.file.write_all(&out);
    }

    /// Writes what a stream began, at its end.
    pub fn finish(&mut self, stream: Stream) {
        let rest = std::mem::take(&mut self.begun[stream as usize]);
        if !rest.is_empty() {
            let mut out = Vec::new();
            line(&mut out, &timestamp(SystemTime::now()), stream, b'P', &rest);
            let _ = self.file.write_all(&out);
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

fn line(out: &mut Vec<u8>, now: &str, stream: Stream, tag: u8, text: &[u8]) {
    out.extend_from_slice(now.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(&[b' ', tag, b' ']);
    out.extend_from_slice(text);
    out.push(b'\n');
}

pub fn nanos(t: SystemTime) -> i64 {
    t.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

/// RFC 3339 in UTC with nine digits of fraction.
fn timestamp(t: SystemTime) -> String {
    let nanos = nanos(t);
    let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{fraction:09}Z")
}

/// The Gregorian date of a day since 1970-01-01, by counting 400-year eras that begin on 1 March.
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let m = (5 * day_of_year + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_year - (153 * m + 2) / 5 + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn written(pieces: &[(Stream, &[u8])], end: bool) -> Vec<String> {
        let path = std::env::temp_dir().join(format!("isopod-log-{}-{:p}", std::process::id(), pieces));
        let mut log = Log::open(&path).unwrap();
        for (stream, data) in pieces {
            log.write(*stream, data);
        }
        if end {
            log.finish(Stream::Stdout);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn lines_are_whole_however_they_arrive() {
        let got =
            written(&[(Stream::Stdout, b"one\ntw"), (Stream::Stderr, b"err\n"), (Stream::Stdout, b"o\n\n")], true);
        assert_eq!(got, ["stdout F one", "stderr F err", "stdout F two", "stdout F "]);
    }

    #[test]
    fn long_and_unended_lines_are_partial() {
        let long = vec![b'x'; MAX_LINE * 2 + 5];
        let got = written(&[(Stream::Stdout, &long), (Stream::Stdout, b"y\nrest")], true);
        assert_eq!(got.len(), 4);
        assert!(got[0].starts_with("stdout P x") && got[1].starts_with("stdout P x"));
        assert_eq!(got[2], "stdout F xxxxxy");
        assert_eq!(got[3], "stdout P rest");
        assert!(written(&[(Stream::Stdout, b"begun")], false).is_empty());
    }

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00.000000007Z"),
            (951_782_400, "2000-02-29T00:00:00.000000007Z"),
            (1_709_251_199, "2024-02-29T23:59:59.000000007Z"),
            (4_102_444_800, "2100-01-01T00:00:00.000000007Z"),
        ] {
            assert_eq!(timestamp(UNIX_EPOCH + Duration::new(seconds, 7)), want);
        }
    }
}
