//! `isopod datastore`: one file a subcommand; without one it serves.

mod check;
mod import;
mod serve;

use crate::args::{DatastoreArgs, DatastoreCommand};

pub async fn run(args: DatastoreArgs) -> anyhow::Result<()> {
    match args.command {
        Some(DatastoreCommand::Check(dir)) => check::check(&dir),
        Some(DatastoreCommand::Repair(dir)) => check::repair(&dir),
        Some(DatastoreCommand::Import(args)) => import::run(args).await,
        None => serve::run(args).await,
    }
}
