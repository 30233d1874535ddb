//! Container logs in CRI's format: `<RFC 3339 time> <stdout|stderr> <P|F> <text>`; reading, tailing, following, rotating.

use jiff::Timestamp;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What is read from the end of a file at once.
const BLOCK: u64 = 16 * 1024;

/// What a log request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub since: Option<Timestamp>,
    /// Lines from the end; `None`: all.
    pub tail: Option<u64>,
    pub limit_bytes: Option<u64>,
    /// `Stdout`, `Stderr` or both when `None`.
    pub stream: Option<String>,
}

/// One line of a log file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<'a> {
    pub time: &'a str,
    pub stream: &'a str,
    /// The text goes on in the next line.
    pub partial: bool,
    pub text: &'a [u8],
}

pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stream = std::str::from_utf8(parts.next()?).ok()?;
    let tags = parts.next()?;
    let text = parts.next().unwrap_or_default();
    matches!(stream, "stdout" | "stderr").then_some(())?;
    Some(Line { time, stream, partial: tags.split(|b| *b == b':').next() == Some(b"P"), text })
}

/// Turns log lines into what a client sees; keeps its place within partial lines.
pub struct Formatter {
    options: Options,
    left: Option<u64>,
    in_partial: bool,
}

impl Formatter {
    pub fn new(options: Options) -> Self {
        Formatter { left: options.limit_bytes, options, in_partial: false }
    }

    /// The bytes limit is used up.
    pub fn is_done(&self) -> bool {
        self.left == Some(0)
    }

    /// Adds what of the line (without its newline) is to be shown.
    pub fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(l) = parse(line) else { return };
        let wanted = self.options.stream.as_deref().is_none_or(|s| s.eq_ignore_ascii_case(l.stream));
        let old = self.options.since.is_some_and(|since| l.time.parse::<Timestamp>().is_ok_and(|t| t < since));
        if !wanted || old {
            return;
        }
        let start = out.len();
        if self.options.timestamps && !self.in_partial {
            out.extend_from_slice(l.time.as_bytes());
            out.push(b' ');
        }
        out.extend_from_slice(l.text);
        if !l.partial {
            out.push(b'\n');
        }
        self.in_partial = l.partial;
        if let Some(left) = &mut self.left {
            let added = (out.len() - start) as u64;
            out.truncate(start + added.min(*left) as usize);
            *left = left.saturating_sub(added);
        }
    }
}

/// Where the last `lines` full lines start. A file that ends without a newline has a last line nevertheless.
pub fn tail_offset(file: &mut std::fs::File, lines: u64) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut at = end;
    let mut found = 0;
    let mut block = Vec::new();
    while at > 0 {
        let size = BLOCK.min(at);
        at -= size;
        file.seek(SeekFrom::Start(at))?;
        block.clear();
        file.by_ref().take(size).read_to_end(&mut block)?;
        for (i, b) in block.iter().enumerate().rev() {
            // The newline at the very end closes the last line.
            if *b == b'\n' && at + i as u64 + 1 != end {
                found += 1;
                if found == lines {
                    return Ok(at + i as u64 + 1);
                }
            }
        }
    }
    Ok(0)
}

/// The last lines of a log as text, for termination messages: at most `lines` lines and `bytes` bytes.
pub fn tail_text(path: &Path, lines: u64, bytes: usize) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let offset = tail_offset(&mut file, lines)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut raw = Vec::new();
    file.take(1 << 20).read_to_end(&mut raw)?;
    let mut formatter = Formatter::new(Options::default());
    let mut out = Vec::new();
    raw.split(|b| *b == b'\n').for_each(|l| formatter.line(l, &mut out));
    let cut = out.len().saturating_sub(bytes);
    Ok(String::from_utf8_lossy(&out[cut..]).into_owned())
}

/// Rotated files of a log, oldest first: `0.log.20260102-030405`.
fn rotated(log: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|n| n.to_str())) else {
        return Ok(Vec::new());
    };
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().and_then(|n| n.strip_prefix(name)).is_some_and(|rest| rest.starts_with('.')) {
            out.push(entry.path());
        }
    }
    out.sort();
    Ok(out)
}

/// Moves a log that has grown beyond `max_size` aside and drops the oldest of more than `max_files` files (with the
/// present one). True when the runtime must reopen the log.
pub fn rotate(log: &Path, max_size: u64, max_files: u32, now: Timestamp) -> io::Result<bool> {
    let size = match log.metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        m => m?.len(),
    };
    if size < max_size {
        return Ok(false);
    }
    let old = rotated(log)?;
    // One place is for the present file, one for the one that is moved now.
    let keep = (max_files.max(2) - 2) as usize;
    for path in old.iter().take(old.len().saturating_sub(keep)) {
        std::fs::remove_file(path)?;
    }
    let aside = format!("{}.{}", log.display(), now.strftime("%Y%m%d-%H%M%S"));
    std::fs::rename(log, aside)?;
    Ok(true)
}

/// Removes a log and its rotated files.
pub fn remove(log: &Path) -> io::Result<()> {
    for path in rotated(log).unwrap_or_default().into_iter().chain([log.to_path_buf()]) {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "2026-01-01T00:00:01.5Z stdout F one\n\
                       2026-01-01T00:00:02Z stderr P tw\n\
                       2026-01-01T00:00:02.1Z stderr F o\n\
                       garbage\n\
                       2026-01-01T00:00:03Z stdout F three\n";

    fn show(options: Options) -> String {
        let mut f = Formatter::new(options);
        let mut out = Vec::new();
        LOG.lines().for_each(|l| f.line(l.as_bytes(), &mut out));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_are_joined_filtered_and_cut() {
        assert_eq!(show(Options::default()), "one\ntwo\nthree\n");
        let stamped = show(Options { timestamps: true, ..Default::default() });
        assert!(stamped.starts_with("2026-01-01T00:00:01.5Z one\n2026-01-01T00:00:02Z two\n"));
        let since = Some("2026-01-01T00:00:02Z".parse().unwrap());
        assert_eq!(show(Options { since, ..Default::default() }), "two\nthree\n");
        assert_eq!(show(Options { limit_bytes: Some(5), ..Default::default() }), "one\nt");
        assert_eq!(show(Options { stream: Some("Stdout".into()), ..Default::default() }), "one\nthree\n");
    }

    #[test]
    fn the_tail_starts_at_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("l");
        let long: String = (0..3000).map(|i| format!("line {i}\n")).collect();
        for (text, lines, want) in [
            ("a\nb\nc\n", 2, 2),
            ("a\nb\nc", 2, 2),
            ("a\nb\n", 5, 0),
            ("a\n", 0, 2),
            ("", 3, 0),
            (long.as_str(), 1, long.len() as u64 - 10),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(tail_offset(&mut std::fs::File::open(&path).unwrap(), lines).unwrap(), want, "{lines}");
        }
        std::fs::write(&path, LOG).unwrap();
        assert_eq!(tail_text(&path, 2, 100).unwrap(), "three\n");
        assert_eq!(tail_text(&path, 80, 7).unwrap(), "\nthree\n");
    }

    #[test]
    fn logs_rotate_and_the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("0.log");
        for i in 0..6 {
            std::fs::write(&log, "0123456789").unwrap();
            let now = Timestamp::from_second(1_700_000_000 + i).unwrap();
            assert!(rotate(&log, 10, 3, now).unwrap());
        }
        assert_eq!(rotated(&log).unwrap().len(), 2);
        std::fs::write(&log, "x").unwrap();
        assert!(!rotate(&log, 10, 3, Timestamp::UNIX_EPOCH).unwrap());
        remove(&log).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
