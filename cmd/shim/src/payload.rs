//! The last step of a container's process: finding its program and becoming it. Errors read as runc's do, because users and
//! tools know those words.

use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use nix::unistd::{AccessFlags, access};
use oci_spec::runtime::{Process, Spec};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone)]
pub struct Payload;

impl Executor for Payload {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        Err(ExecutorError::Other(become_process(process).to_string()))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let invalid = |text: String| ExecutorValidationError::ArgValidationError(text);
        let process = spec.process().as_ref().ok_or_else(|| invalid("the spec has no process".into()))?;
        find(process).map(drop).map_err(|e| invalid(e.to_string()))
    }
}

/// Where the process's program is: in its own PATH, as this process's user.
pub fn find(process: &Process) -> io::Result<PathBuf> {
    let empty = vec![];
    let name = process.args().as_ref().unwrap_or(&empty).first().cloned().unwrap_or_default();
    if name.is_empty() {
        return Err(io::Error::other("no command specified"));
    }
    if name.contains('/') {
        let path = Path::new(&name);
        let metadata = std::fs::metadata(path).map_err(|e| failed(&name, &format!("stat {name}: {}", plain(&e))))?;
        if metadata.is_dir() {
            return Err(failed(&name, "is a directory"));
        }
        return executable(path).then(|| path.into()).ok_or_else(|| failed(&name, "permission denied"));
    }
    let env = process.env().as_ref().unwrap_or(&empty);
    let search = env.iter().rev().find_map(|e| e.strip_prefix("PATH=")).unwrap_or("");
    let candidates = search.split(':').map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(&name));
    candidates
        .into_iter()
        .find(|p| p.is_file() && executable(p))
        .ok_or_else(|| failed(&name, "executable file not found in $PATH"))
}

fn executable(path: &Path) -> bool {
    access(path, AccessFlags::X_OK).is_ok()
}

fn failed(name: &str, why: &str) -> io::Error {
    io::Error::other(format!("exec: {name:?}: {why}"))
}

/// The kernel's words for an error, without Rust's number.
fn plain(e: &io::Error) -> String {
    match e.raw_os_error() {
        Some(n) => nix::errno::Errno::from_raw(n).desc().to_lowercase(),
        None => e.to_string(),
    }
}

/// Returns only when it failed.
pub fn become_process(process: &Process) -> io::Error {
    let program = match find(process) {
        Ok(p) => p,
        Err(e) => return e,
    };
    let empty = vec![];
    let args = process.args().as_ref().unwrap_or(&empty);
    let mut command = Command::new(&program);
    command.arg0(&args[0]).args(&args[1..]).env_clear();
    let mut home = false;
    for variable in process.env().as_ref().unwrap_or(&empty) {
        if let Some((name, value)) = variable.split_once('=') {
            home |= name == "HOME" && !value.is_empty();
            command.env(name, value);
        }
    }
    if !home {
        command.env("HOME", home_of(process.user().uid()).unwrap_or_else(|| "/".into()));
    }
    let e = command.exec();
    io::Error::other(format!("exec {}: {}", program.display(), plain(&e)))
}

fn home_of(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let same = fields.get(2)?.parse() == Ok(uid);
        (same && !fields.get(5)?.is_empty()).then(|| fields[5].to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::ProcessBuilder;

    #[test]
    fn says_what_runc_says() {
        let find = |name: &str| {
            let process = ProcessBuilder::default()
                .args(vec![name.to_owned()])
                .env(vec!["PATH=/nowhere:/bin".to_owned()])
                .build()
                .unwrap();
            find(&process).map_err(|e| e.to_string())
        };
        assert_eq!(find("sh").unwrap(), Path::new("/bin/sh"));
        assert_eq!(find("/bin/sh").unwrap(), Path::new("/bin/sh"));
        for (name, want) in [
            ("nope", r#"exec: "nope": executable file not found in $PATH"#),
            ("/nope", r#"exec: "/nope": stat /nope: no such file or directory"#),
            ("/etc/passwd", r#"exec: "/etc/passwd": permission denied"#),
            ("/etc", r#"exec: "/etc": is a directory"#),
        ] {
            assert_eq!(find(name).unwrap_err(), want);
        }
    }
}
