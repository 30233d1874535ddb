//! A file that is put aside when it has become too large: `audit.log` becomes `audit-2026-01-31T15-04-05.000.log`. Old ones
//! are compressed and removed beside the writing.

use isopod_base::errors::Chain;
use jiff::{SignedDuration, Timestamp};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes; 0: one file, never put aside.
    pub size: u64,
    /// How many old files stay; 0: all.
    pub backups: usize,
    /// Days that old files stay; 0: for ever.
    pub days: i64,
    pub compress: bool,
}

pub struct Rotating {
    path: PathBuf,
    limits: Limits,
    file: File,
    written: u64,
}

const PATTERN: &str = "%Y-%m-%dT%H-%M-%S%.3f";
const TIMES: usize = "2026-01-31T15-04-05.000".len();

impl Rotating {
    /// Opens the file, which only its owner may read, and makes its directory.
    pub fn open(path: &Path, limits: Limits) -> io::Result<Self> {
        if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let file = append(path)?;
        let written = file.metadata()?.len();
        Ok(Rotating { path: path.to_owned(), limits, file, written })
    }

    /// Writes one line; it is not split over two files.
    pub fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let size = line.len() as u64;
        if self.limits.size > 0 && self.written > 0 && self.written + size > self.limits.size {
            self.put_aside()?;
        }
        self.file.write_all(line)?;
        self.written += size;
        Ok(())
    }

    fn put_aside(&mut self) -> io::Result<()> {
        fs::rename(&self.path, self.old_name(Timestamp::now()))?;
        self.file = append(&self.path)?;
        self.written = 0;
        let (path, limits) = (self.path.clone(), self.limits.clone());
        std::thread::Builder::new().name("audit-log-files".into()).spawn(move || {
            if let Err(e) = tidy(&path, &limits, Timestamp::now()) {
                tracing::warn!(path = %path.display(), error = %Chain(&e), "cannot tidy up old audit logs");
            }
        })?;
        Ok(())
    }

    fn old_name(&self, now: Timestamp) -> PathBuf {
        let (stem, extension) = parts(&self.path);
        self.path.with_file_name(format!("{stem}-{}{extension}", now.strftime(PATTERN)))
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// `audit` and `.log`.
fn parts(path: &Path) -> (String, String) {
    let text = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned());
    let extension = text(path.extension()).map(|e| format!(".{e}")).unwrap_or_default();
    (text(path.file_stem()).unwrap_or_default(), extension)
}

/// Removes old files that are too many or too old, and compresses the rest if that is wanted.
fn tidy(path: &Path, limits: &Limits, now: Timestamp) -> io::Result<()> {
    let directory = path.parent().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (stem, extension) = parts(path);
    let mut old: Vec<(Timestamp, PathBuf)> = Vec::new();
    for entry in fs::read_dir(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let bare = name.strip_suffix(".gz").unwrap_or(&name);
        let time = bare.strip_prefix(&format!("{stem}-")).and_then(|n| n.strip_suffix(&extension));
        let time = time.filter(|t| t.len() == TIMES).and_then(|t| jiff::civil::DateTime::strptime(PATTERN, t).ok());
        if let Some(at) = time.and_then(|t| t.to_zoned(jiff::tz::TimeZone::UTC).ok()) {
            old.push((at.timestamp(), directory.join(name)));
        }
    }
    old.sort_by(|a, b| b.cmp(a));
    let age = SignedDuration::from_hours(24 * limits.days);
    for (i, (at, file)) in old.iter().enumerate() {
        let too_many = limits.backups > 0 && i >= limits.backups;
        if too_many || (limits.days > 0 && now.duration_since(*at) > age) {
            fs::remove_file(file)?;
        } else if limits.compress && file.extension().is_none_or(|e| e != "gz") {
            compress(file)?;
        }
    }
    Ok(())
}

fn compress(file: &Path) -> io::Result<()> {
    let mut name = file.as_os_str().to_owned();
    name.push(".gz");
    let zipped = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&name)?;
    let mut encoder = flate2::write::GzEncoder::new(zipped, flate2::Compression::default());
    io::copy(&mut File::open(file)?, &mut encoder)?;
    encoder.finish()?.sync_all()?;
    fs::remove_file(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_file_is_put_aside_whole_lines_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/audit.log");
        let limits = Limits { size: 10, backups: 0, days: 0, compress: false };
        let mut file = Rotating::open(&path, limits).unwrap();
        for line in ["12345\n", "678\n", "90\n"] {
            file.write(line.as_bytes()).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), "90\n");
        let all = names(path.parent().unwrap());
        assert_eq!(all.len(), 2, "{all:?}");
        let old = path.with_file_name(all.iter().find(|n| *n != "audit.log").unwrap());
        assert_eq!(fs::read_to_string(old).unwrap(), "12345\n678\n");
    }

    #[test]
    fn old_files_go_by_number_and_age_and_are_compressed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.log");
        for name in [
            "audit.log",
            "audit-2026-01-01T00-00-00.000.log",
            "audit-2026-01-09T00-00-00.000.log",
            "audit-2026-01-10T00-00-00.000.log",
            "audit-2026-01-11T00-00-00.000.log.gz",
            "audit-other.log",
        ] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        let limits = Limits { size: 1, backups: 2, days: 5, compress: true };
        tidy(&path, &limits, "2026-01-12T00:00:00Z".parse().unwrap()).unwrap();
        let want = [
            "audit-2026-01-10T00-00-00.000.log.gz",
            "audit-2026-01-11T00-00-00.000.log.gz",
            "audit-other.log",
            "audit.log",
        ];
        assert_eq!(names(dir.path()), want);
    }
}
