//! `isopod datastore`: one file a subcommand; without one it serves.

mod serve;

use crate::args::DatastoreArgs;

pub async fn run(args: DatastoreArgs) -> anyhow::Result<()> {
    serve::run(args).await
}
