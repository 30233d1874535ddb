//! etcd's command line for `isopod datastore`, so that scripts and unit files go on working: environment variables `ETCD_…`,
//! a configuration file, one dash or two, and every flag of etcd 3.4 to 3.7.
//!
//! A flag that means nothing here is taken and told with a line in the log. One whose promise would not be kept is refused.

use anyhow::{Context, bail};
use isopod_schema::yaml;
use serde_json::{Map, Value};
use std::collections::BTreeSet;
use std::ffi::OsString;

/// What becomes of a flag that `args.rs` does not have.
enum Fate {
    /// It has no meaning here, and nothing gets worse for it.
    Nothing(&'static str),
    /// Only these values can be kept; `""` is the flag left empty.
    Only(&'static [&'static str], &'static str),
}

use Fate::{Nothing, Only};

struct Row {
    name: &'static str,
    /// May stand without a value.
    switch: bool,
    fate: Fate,
}

const fn value(name: &'static str, fate: Fate) -> Row {
    Row { name, switch: false, fate }
}

const fn switch(name: &'static str, fate: Fate) -> Row {
    Row { name, switch: true, fate }
}

const NO_RAFT: &str = "there is one member and no Raft log";
const NO_PEERS: &str = "there are no peers: nobody listens for them";
const NO_BOLT: &str = "the data are not in a bbolt file";
const NO_CLUSTER: &str = "this datastore has one member: for several servers let each use one Postgres, or a real etcd, as its \
     --datastore-endpoint";
const NO_GATEWAY: &str = "API v3 is served by gRPC alone";
const LOGS: &str = "logs go to stderr, chosen by --log-level and --log-format";
const CHECKED: &str = "checks of the data are this datastore's own";
const OFF: &[&str] = &["false", ""];

#[rustfmt::skip]
const ROWS: &[Row] = &[
    value("wal-dir", Nothing("there is one database: it lies in --data-dir")),
    value("snapshot-count", Nothing(NO_RAFT)),
    value("snapshot-catchup-entries", Nothing(NO_RAFT)),
    value("heartbeat-interval", Nothing(NO_RAFT)),
    value("election-timeout", Nothing(NO_RAFT)),
    switch("initial-election-tick-advance", Nothing(NO_RAFT)),
    switch("pre-vote", Nothing(NO_RAFT)),
    switch("strict-reconfig-check", Nothing(NO_RAFT)),
    value("max-snapshots", Nothing(NO_RAFT)),
    value("max-wals", Nothing(NO_RAFT)),
    value("max-learners", Nothing(NO_RAFT)),
    value("raft-read-timeout", Nothing(NO_RAFT)),
    value("raft-write-timeout", Nothing(NO_RAFT)),
    value("listen-peer-urls", Nothing(NO_PEERS)),
    value("initial-cluster-token", Nothing(NO_PEERS)),
    value("initial-cluster-state", Nothing(NO_PEERS)),
    value("peer-cert-file", Nothing(NO_PEERS)),
    value("peer-key-file", Nothing(NO_PEERS)),
    value("peer-trusted-ca-file", Nothing(NO_PEERS)),
    value("peer-client-cert-file", Nothing(NO_PEERS)),
    value("peer-client-key-file", Nothing(NO_PEERS)),
    value("peer-crl-file", Nothing(NO_PEERS)),
    value("peer-cert-allowed-cn", Nothing(NO_PEERS)),
    value("peer-cert-allowed-hostname", Nothing(NO_PEERS)),
    switch("peer-client-cert-auth", Nothing(NO_PEERS)),
    switch("peer-auto-tls", Nothing(NO_PEERS)),
    switch("peer-skip-client-san-verification", Nothing(NO_PEERS)),
    value("client-cert-file", Nothing("this datastore is nobody's client")),
    value("client-key-file", Nothing("this datastore is nobody's client")),
    value("self-signed-cert-validity", Nothing("no certificates are made here")),
    switch("auto-tls", Only(OFF, "a certificate that nobody knows keeps nobody out: give --cert-file and --key-file")),
    value("discovery", Only(&[""], NO_CLUSTER)),
    value("discovery-srv", Only(&[""], NO_CLUSTER)),
    value("discovery-token", Only(&[""], NO_CLUSTER)),
    value("discovery-endpoints", Only(&[""], NO_CLUSTER)),
    value("discovery-srv-name", Nothing(NO_PEERS)),
    value("discovery-fallback", Nothing(NO_PEERS)),
    value("discovery-proxy", Nothing(NO_PEERS)),
    value("discovery-dial-timeout", Nothing(NO_PEERS)),
    value("discovery-request-timeout", Nothing(NO_PEERS)),
    value("discovery-keepalive-time", Nothing(NO_PEERS)),
    value("discovery-keepalive-timeout", Nothing(NO_PEERS)),
    switch("discovery-insecure-transport", Nothing(NO_PEERS)),
    switch("discovery-insecure-skip-tls-verify", Nothing(NO_PEERS)),
    value("discovery-cert", Nothing(NO_PEERS)),
    value("discovery-key", Nothing(NO_PEERS)),
    value("discovery-cacert", Nothing(NO_PEERS)),
    value("discovery-user", Nothing(NO_PEERS)),
    value("discovery-password", Nothing(NO_PEERS)),
    value("backend-bbolt-freelist-type", Nothing(NO_BOLT)),
    value("backend-batch-interval", Nothing(NO_BOLT)),
    value("backend-batch-limit", Nothing(NO_BOLT)),
    value("bootstrap-defrag-threshold-megabytes", Nothing(NO_BOLT)),
    value("compaction-batch-limit", Nothing(NO_BOLT)),
    value("compaction-sleep-interval", Nothing(NO_BOLT)),
    switch("memory-mlock", Nothing(NO_BOLT)),
    switch("unsafe-no-fsync", Nothing("every write reaches the disk before it is answered")),
    switch("force-new-cluster", Only(OFF, "there is one member already: leave the flag out")),
    value("grpc-keepalive-min-time", Nothing("a client may ask as often as it likes")),
    switch("socket-reuse-port", Nothing("one process has the data: a second one has nothing to listen for")),
    switch("socket-reuse-address", Nothing("listeners always do")),
    switch("enable-grpc-gateway", Nothing(NO_GATEWAY)),
    value("cors", Nothing(NO_GATEWAY)),
    value("host-whitelist", Only(&["*", ""], "requests are not told apart by their Host header: use --client-cert-auth")),
    switch("enable-v2", Only(OFF, "API v2 is not served")),
    value("v2-deprecation", Nothing("API v2 is not served")),
    value("proxy", Only(&["off", ""], "API v2's proxy is not served")),
    value("proxy-failure-wait", Nothing("API v2's proxy is not served")),
    value("proxy-refresh-interval", Nothing("API v2's proxy is not served")),
    value("proxy-dial-timeout", Nothing("API v2's proxy is not served")),
    value("proxy-write-timeout", Nothing("API v2's proxy is not served")),
    value("proxy-read-timeout", Nothing("API v2's proxy is not served")),
    switch("enable-pprof", Nothing("this is no Go program")),
    value("metrics", Nothing("/metrics has one level of detail")),
    value("logger", Nothing(LOGS)),
    value("log-outputs", Nothing(LOGS)),
    value("log-output", Nothing(LOGS)),
    value("log-package-levels", Nothing(LOGS)),
    switch("debug", Nothing(LOGS)),
    switch("enable-log-rotation", Nothing(LOGS)),
    value("log-rotation-config-json", Nothing(LOGS)),
    value("warning-apply-duration", Nothing(LOGS)),
    value("warning-unary-request-duration", Nothing(LOGS)),
    switch("enable-distributed-tracing", Nothing("requests are not traced across programs")),
    value("distributed-tracing-address", Nothing("requests are not traced across programs")),
    value("distributed-tracing-service-name", Nothing("requests are not traced across programs")),
    value("distributed-tracing-instance-id", Nothing("requests are not traced across programs")),
    value("distributed-tracing-sampling-rate", Nothing("requests are not traced across programs")),
    value("corrupt-check-time", Nothing(CHECKED)),
    value("compact-hash-check-time", Nothing(CHECKED)),
    value("downgrade-check-time", Nothing("the data have a format of their own")),
    value("feature-gates", Nothing("etcd's experiments are not this datastore's")),
];

/// Variables that are for etcd's program, not for what it serves.
const FOREIGN: [&str; 2] = ["ETCD_UNSUPPORTED_ARCH", "ETCD_CONFIG_FILE"];
/// What older etcds said for flags that `args.rs` has.
const RENAMED: [(&str, &str); 1] = [("experimental-watch-progress-notify-interval", "watch-progress-notify-interval")];

/// A command line that clap understands, and what there is to tell of it.
#[derive(Debug, Default, PartialEq)]
pub struct Expanded {
    pub args: Vec<OsString>,
    pub notes: Vec<String>,
}

/// `known`: the flags that clap has. `vars`: the environment.
pub fn expand(
    args: Vec<OsString>,
    known: &BTreeSet<String>,
    vars: impl Iterator<Item = (String, String)>,
) -> anyhow::Result<Expanded> {
    if args.get(1).is_none_or(|c| c != "datastore") {
        return Ok(Expanded { args, notes: Vec::new() });
    }
    let vars: Vec<_> = vars.filter(|(name, value)| name.starts_with("ETCD_") && !value.is_empty()).collect();
    let mut reader = Reader { known, given: BTreeSet::new(), out: Expanded::default() };
    reader.out.args.extend_from_slice(&args[..2]);
    let mut file = vars.iter().find(|(name, _)| name == "ETCD_CONFIG_FILE").map(|(_, path)| path.clone());
    reader.command_line(&args[2..], &mut file)?;
    match file {
        Some(path) => reader.file(&path)?,
        None => reader.environment(&vars)?,
    }
    Ok(reader.out)
}

struct Reader<'a> {
    known: &'a BTreeSet<String>,
    given: BTreeSet<String>,
    out: Expanded,
}

fn row(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|r| r.name == name)
}

impl Reader<'_> {
    fn knows(&self, name: &str) -> bool {
        self.known.contains(name) || row(name).is_some() || name.starts_with("experimental-")
    }

    fn command_line(&mut self, args: &[OsString], file: &mut Option<String>) -> anyhow::Result<()> {
        let mut rest = args.iter().peekable();
        while let Some(arg) = rest.next() {
            let flag = arg.to_str().and_then(|a| a.strip_prefix("--").or_else(|| a.strip_prefix('-')));
            let (name, inline) = match flag.map(|f| f.split_once('=').map_or((f, None), |(n, v)| (n, Some(v)))) {
                Some((name, inline)) if self.knows(name) || name == "config-file" => (name, inline),
                // Not etcd's: clap's, or wrong.
                _ => {
                    self.out.args.push(arg.clone());
                    continue;
                }
            };
            if self.known.contains(name) {
                self.given.insert(name.to_owned());
                self.out.args.push(match inline {
                    Some(value) => format!("--{name}={value}").into(),
                    None => format!("--{name}").into(),
                });
                continue;
            }
            let is_switch = row(name).is_some_and(|r| r.switch);
            let mut next = || rest.peek().and_then(|v| v.to_str()).filter(|v| !v.starts_with('-')).map(str::to_owned);
            let value = match inline {
                Some(value) => value.to_owned(),
                None if is_switch => "true".to_owned(),
                None => match next() {
                    Some(value) => {
                        rest.next();
                        value
                    }
                    None => "true".to_owned(),
                },
            };
            if name == "config-file" {
                *file = Some(value);
            } else {
                self.take(name, &value, &format!("--{name}"))?;
            }
        }
        Ok(())
    }

    /// A flag that is etcd's: to clap under the name that it has here, or to its fate.
    fn take(&mut self, name: &str, value: &str, said: &str) -> anyhow::Result<()> {
        self.given.insert(name.to_owned());
        let renamed = RENAMED.iter().find(|(old, _)| *old == name).map(|(_, new)| *new);
        // What was an experiment in one version of etcd has its own name in the next.
        let name = renamed.or_else(|| name.strip_prefix("experimental-")).unwrap_or(name);
        if self.known.contains(name) {
            self.out.args.push(format!("--{name}={value}").into());
            return Ok(());
        }
        let why = match row(name).map(|r| &r.fate) {
            Some(Only(kept, _)) if kept.contains(&value) => return Ok(()),
            Some(Only(_, why)) => bail!("{said}={value} is not possible: {why}"),
            Some(Nothing(why)) => why,
            None => "etcd's experiments are not this datastore's",
        };
        self.out.notes.push(format!("{said} does nothing: {why}"));
        Ok(())
    }

    fn environment(&mut self, vars: &[(String, String)]) -> anyhow::Result<()> {
        for (var, value) in vars.iter().filter(|(v, _)| !FOREIGN.contains(&v.as_str())) {
            let name = var.trim_start_matches("ETCD_").to_lowercase().replace('_', "-");
            if self.given.contains(&name) {
                self.out.notes.push(format!("{var} does nothing: --{name} is given"));
            } else if self.knows(&name) {
                self.take(&name, value, var)?;
            } else {
                self.out.notes.push(format!("{var} does nothing: there is no flag --{name}"));
            }
        }
        Ok(())
    }

    /// As in etcd the file is all that counts, beside the flags that etcd has not.
    fn file(&mut self, path: &str) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(path).with_context(|| format!("--config-file: cannot read {path}"))?;
        let wrong = || format!("--config-file: {path}: write a YAML mapping of etcd's flags");
        let map = match yaml::parse_strictly(&text).with_context(wrong)? {
            Value::Object(map) => map,
            Value::Null => return Ok(()),
            _ => bail!(wrong()),
        };
        for (key, value) in map {
            match (key.as_str(), value) {
                ("client-transport-security", Value::Object(section)) => self.section("", section, path)?,
                ("peer-transport-security", Value::Object(section)) => self.section("peer-", section, path)?,
                (_, value) => self.entry(&key, &value, path)?,
            }
        }
        Ok(())
    }

    fn section(&mut self, prefix: &str, section: Map<String, Value>, path: &str) -> anyhow::Result<()> {
        for (key, value) in section {
            let name = match (prefix, key.as_str()) {
                ("", "allowed-hostname") => "client-cert-allowed-hostname".to_owned(),
                ("peer-", "allowed-cn" | "allowed-hostname") => format!("peer-cert-{key}"),
                _ => format!("{prefix}{key}"),
            };
            self.entry(&name, &value, path)?;
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, value: &Value, path: &str) -> anyhow::Result<()> {
        let said = format!("{path}: {name}");
        if !self.knows(name) {
            bail!("{said}: there is no such flag");
        }
        if self.given.contains(name) {
            bail!("{said}: --{name} is given on the command line too: leave one of them out");
        }
        let text = |v: &Value| match v {
            Value::String(s) => Some(s.clone()),
            Value::Bool(b) => Some(b.to_string()),
            // Durations are nanoseconds here, and only here.
            Value::Number(n) if name.ends_with("interval") || name.ends_with("timeout") => {
                n.as_u64().map(|n| format!("{}ms", n / 1_000_000))
            }
            Value::Number(n) => Some(n.to_string()),
            Value::Null => Some(String::new()),
            _ => None,
        };
        let one = match value {
            Value::Array(list) => list.iter().map(text).collect::<Option<Vec<_>>>().map(|l| l.join(",")),
            other => text(other),
        };
        let one = one.with_context(|| format!("{said}: write a value or a list of values"))?;
        // An empty entry is the default.
        if one.is_empty() { Ok(()) } else { self.take(name, &one, &said) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> BTreeSet<String> {
        let names = ["name", "data-dir", "listen-client-urls", "client-cert-auth", "watch-progress-notify-interval"];
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    fn run(line: &str, vars: &[(&str, &str)]) -> anyhow::Result<(String, Vec<String>)> {
        let args = ["isopod", "datastore"].into_iter().chain(line.split_whitespace()).map(OsString::from).collect();
        let vars = vars.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        let out = expand(args, &known(), vars)?;
        let args: Vec<String> = out.args[2..].iter().map(|a| a.to_str().unwrap().to_owned()).collect();
        Ok((args.join(" "), out.notes))
    }

    #[test]
    fn flags_of_scripts_are_taken() {
        let (args, notes) = run(
            "-name a --data-dir=/x --snapshot-count 5000 --pre-vote --logger=zap --auto-tls=false --log-json -d /y",
            &[],
        )
        .unwrap();
        assert_eq!(args, "--name a --data-dir=/x --log-json -d /y");
        assert_eq!(notes.len(), 3, "{notes:?}");
        let (args, notes) =
            run("--experimental-watch-progress-notify-interval=5s --experimental-anything 7", &[]).unwrap();
        assert_eq!((args.as_str(), notes.len()), ("--watch-progress-notify-interval=5s", 1));
        assert_eq!(run("--client-cert-auth --no-such-flag x", &[]).unwrap().0, "--client-cert-auth --no-such-flag x");
    }

    #[test]
    fn promises_that_are_not_kept_are_refused() {
        for line in
            ["--auto-tls", "--discovery=https://x", "--force-new-cluster=true", "--host-whitelist=a", "--enable-v2"]
        {
            let e = run(line, &[]).unwrap_err().to_string();
            assert!(e.contains("is not possible"), "{line}: {e}");
        }
        assert!(run("--auto-tls=false --force-new-cluster=false --host-whitelist=*", &[]).unwrap().1.is_empty());
    }

    #[test]
    fn variables_are_flags() {
        let vars = [
            ("ETCD_NAME", "a"),
            ("ETCD_LISTEN_CLIENT_URLS", "http://x:1"),
            ("ETCD_PRE_VOTE", "true"),
            ("ETCD_WHATEVER", "x"),
            ("ETCD_DATA_DIR", ""),
            ("ETCD_UNSUPPORTED_ARCH", "arm64"),
            ("ETCDCTL_API", "3"),
        ];
        let (args, notes) = run("--name=b", &vars).unwrap();
        assert_eq!(args, "--name=b --listen-client-urls=http://x:1");
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(run("", &[("ETCD_AUTO_TLS", "true")]).unwrap_err().to_string().contains("ETCD_AUTO_TLS"));
    }

    #[test]
    fn a_file_replaces_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("etcd.conf.yml");
        let text = "name: a\nsnapshot-count: 5000\ninitial-cluster-state: 'new'\nwal-dir:\n\
                    watch-progress-notify-interval: 5000000000\n\
                    listen-client-urls: [http://a:1, http://b:1]\n\
                    client-transport-security:\n  client-cert-auth: true\n  auto-tls: false\n";
        std::fs::write(&path, text).unwrap();
        let line = format!("--config-file {} --log-json", path.display());
        let (args, notes) = run(&line, &[("ETCD_NAME", "z")]).unwrap();
        assert_eq!(
            args,
            "--log-json --client-cert-auth=true --listen-client-urls=http://a:1,http://b:1 --name=a \
             --watch-progress-notify-interval=5000ms"
        );
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(run(&format!("{line} --name=b"), &[]).is_err());
        std::fs::write(&path, "nmae: a").unwrap();
        assert!(run(&line, &[]).unwrap_err().to_string().contains("nmae"));
    }
}
