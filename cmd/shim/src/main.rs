//! A pod's shim: holds the pod's namespaces, runs its containers, writes their logs and remembers how they ended.
//!
//! One program, several roles, told apart by the first argument. `serve` is the shim itself: one thread, one poll loop, so
//! that its memory stays small and forking stays sound. The others are short-lived helpers that it starts from its own
//! (sealed) executable: `start` makes a container with libcontainer, `exec` runs a process in one, `pidns` makes the pod's
//! process namespace, whose first process is `pause`. A helper reports over the socket whose descriptor it is told.
//!
//! Invariant: the shim needs nobody. The runtime may go and come back; what happened meanwhile is in `exit.json` of each
//! container's bundle and in the shim's answer to `State`.

mod attach;
mod container;
mod create;
mod exec;
mod log;
mod payload;
mod pidns;
mod serve;
mod server;
mod spawn;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve", dir] => serve::run(dir.as_ref()),
        ["start", socket] => create::run(socket),
        ["exec", socket] => exec::run(socket),
        ["pidns", socket] => pidns::run(socket),
        ["pause"] => pidns::pause(),
        _ => {
            eprintln!("isopod-shim is started by isopod for each pod; it is not a command for people");
            ExitCode::from(2)
        }
    }
}
