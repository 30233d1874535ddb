//! The configuration file: its keys are flags, and it stands before the command line, which wins.
//!
//! `isopod server --config F` reads F; without `--config`, `/etc/isopod/config.yaml` when it is there. Lists repeat the
//! flag, `true` sets it, `false` leaves it out. An unknown key is an error that names the file.

use crate::args::Cli;
use anyhow::{Context, bail};
use clap::CommandFactory;
use isopod_schema::yaml;
use serde_json::Value;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

const DEFAULT: &str = "/etc/isopod/config.yaml";

/// Puts the file's flags between the subcommand and the user's own flags.
pub fn expand(args: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    if args.get(1).is_none_or(|c| c != "server") {
        return Ok(args);
    }
    let (path, asked) = named_file(&args);
    let text = match std::fs::read_to_string(&path) {
        Ok(t) => t,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !asked => return Ok(args),
        Err(e) => return Err(e).with_context(|| format!("cannot read the configuration file {}", path.display())),
    };
    let mut flags = flags(&text, &path)?;
    // A flag of the command line replaces the file's values of the same flag.
    flags.retain(|(key, _)| !args.iter().any(|a| is_flag(a, key)));
    let mut all = args[..2].to_vec();
    all.extend(flags.into_iter().map(|(_, flag)| flag));
    all.extend_from_slice(&args[2..]);
    Ok(all)
}

fn is_flag(arg: &OsString, key: &str) -> bool {
    let Some(a) = arg.to_str().and_then(|a| a.strip_prefix("--")) else { return false };
    a == key || a.strip_prefix(key).is_some_and(|rest| rest.starts_with('='))
}

fn named_file(args: &[OsString]) -> (PathBuf, bool) {
    let mut it = args.iter();
    while let Some(a) = it.next() {
        let Some(text) = a.to_str() else { continue };
        if text == "--config" || text == "-c" {
            return (it.next().map(PathBuf::from).unwrap_or_default(), true);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return (path.into(), true);
        }
    }
    (DEFAULT.into(), false)
}

/// The file as `(key, --key=value)`.
fn flags(text: &str, path: &Path) -> anyhow::Result<Vec<(String, OsString)>> {
    let file = path.display();
    let value = yaml::parse_strictly(text).with_context(|| format!("{file} is not valid YAML"))?;
    let map = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Object(m) => m,
        _ => bail!("{file}: write `flag: value` lines"),
    };
    let command = Cli::command();
    let server = command.find_subcommand("server").context("the server subcommand exists")?;
    let mut out = Vec::new();
    for (key, value) in map {
        let known = server.get_arguments().any(|a| a.get_long() == Some(key.as_str())) && key != "config";
        if !known {
            bail!(
                "{file}: unknown key {key:?}; keys are the flags that `isopod server --help` shows, without dashes in front"
            );
        }
        let values = match value {
            Value::Array(list) => list,
            one => vec![one],
        };
        for v in values {
            match scalar(&v) {
                Some(Scalar::Flag(true)) => out.push((key.clone(), format!("--{key}").into())),
                Some(Scalar::Flag(false)) => {}
                Some(Scalar::Text(t)) => out.push((key.clone(), format!("--{key}={t}").into())),
                None => bail!("{file}: {key}: write text, a number, true or false, or a list of them"),
            }
        }
    }
    Ok(out)
}

enum Scalar {
    Flag(bool),
    Text(String),
}

fn scalar(v: &Value) -> Option<Scalar> {
    match v {
        Value::Bool(b) => Some(Scalar::Flag(*b)),
        Value::Number(n) => Some(Scalar::Text(n.to_string())),
        Value::String(s) => Some(Scalar::Text(s.clone())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<Vec<String>, String> {
        flags(text, Path::new("c.yaml"))
            .map(|f| f.into_iter().map(|(_, a)| a.into_string().unwrap()).collect())
            .map_err(|e| format!("{e:#}"))
    }

    #[test]
    fn keys_become_flags() {
        let text = "node-name: box\ntls-san: [a, b]\ndisable-agent: true\nlog-json: false\nhttps-listen-port: 7443\n";
        let want = ["--disable-agent", "--https-listen-port=7443", "--node-name=box", "--tls-san=a", "--tls-san=b"];
        assert_eq!(list(text).unwrap(), want);
        assert_eq!(list("").unwrap(), Vec::<String>::new());
    }

    #[test]
    fn mistakes_are_named() {
        assert!(list("nodename: x").unwrap_err().contains("c.yaml: unknown key \"nodename\""));
        assert!(list("node-name: {a: 1}").unwrap_err().contains("node-name: write text"));
        assert!(list("a: [").unwrap_err().contains("c.yaml is not valid YAML"));
        assert!(list("node-name: a\nnode-name: b").unwrap_err().contains("\"node-name\" already set"));
        assert!(list("[1]").unwrap_err().contains("flag: value"));
    }

    #[test]
    fn the_command_line_wins() {
        let file = tempfile_with("node-name: file\ntls-san: [a]\n");
        let args =
            ["isopod", "server", "--config", file.to_str().unwrap(), "--node-name=cli"].map(OsString::from).to_vec();
        let all = expand(args).unwrap();
        let all: Vec<_> = all.iter().map(|a| a.to_str().unwrap()).collect();
        assert_eq!(all[2], "--tls-san=a");
        assert!(!all.contains(&"--node-name=file"));
        std::fs::remove_file(file).unwrap();
    }

    fn tempfile_with(text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("isopod-config-{}.yaml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }
}
