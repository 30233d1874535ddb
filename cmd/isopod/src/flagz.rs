//! How a server was started, for `/flagz`: every flag of `isopod server` with its value, also those that were not given.

use crate::args::Cli;
use clap::CommandFactory;
use std::collections::BTreeMap;
use std::ffi::OsString;

/// Values of these are nobody's business: there may be a password in them.
const SECRET: [&str; 1] = ["datastore-endpoint"];
const CLASSIFIED: &str = "CLASSIFIED";

/// From a command line with the flags of the configuration file. Nothing for other subcommands.
pub fn shown(args: &[OsString]) -> BTreeMap<String, String> {
    let command = Cli::command();
    let Ok(given) = command.clone().try_get_matches_from(args) else { return BTreeMap::new() };
    let (Some(("server", given)), Some(server)) = (given.subcommand(), command.find_subcommand("server")) else {
        return BTreeMap::new();
    };
    let flag = |arg: &clap::Arg| {
        let name = arg.get_long()?.to_owned();
        let values = given.try_get_raw(arg.get_id().as_str()).ok().flatten().into_iter().flatten();
        let values: Vec<_> = values.map(|v| v.to_string_lossy()).collect();
        let value = if SECRET.contains(&name.as_str()) { CLASSIFIED.to_owned() } else { values.join(",") };
        Some((name, value))
    };
    server.get_arguments().filter_map(flag).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_shown_with_their_values_and_without_secrets() {
        let args = [
            "isopod",
            "server",
            "--disable-agent",
            "--datastore-endpoint=postgres://me:secret@h/d",
            "--tls-san=a",
            "--tls-san=b",
        ];
        let shown = shown(&args.map(OsString::from));
        let value = |name: &str| shown[name].as_str();
        assert_eq!((value("disable-agent"), value("disable-scheduler")), ("true", "false"));
        assert_eq!((value("datastore-endpoint"), value("tls-san")), (CLASSIFIED, "a,b"));
        assert_eq!((value("service-cidr"), value("authorization-mode")), ("10.43.0.0/16", ""));
        assert!(super::shown(&["isopod", "cleanup"].map(OsString::from)).is_empty());
    }
}
