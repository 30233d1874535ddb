//! `isopod restore`: a backup becomes a datastore, in a data directory or in a Postgres database, and a data directory's keys.

use crate::args::RestoreArgs;
use crate::paths::Paths;
use crate::replace::{Place, Target};
use anyhow::Context;
use isopod_store::archive::{Archive, ArchiveError};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

type Input = BufReader<Box<dyn Read + Send>>;

pub async fn run(args: RestoreArgs) -> anyhow::Result<()> {
    let done = tokio::task::spawn_blocking(move || if args.check { check(&args) } else { restore(&args) });
    done.await?
}

fn open(path: &Path) -> anyhow::Result<Archive<Input>> {
    let input: Box<dyn Read + Send> = if path == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(|| format!("cannot open {}", path.display()))?)
    };
    Archive::open(BufReader::new(input)).with_context(|| path.display().to_string())
}

fn described(archive: &Archive<Input>) -> String {
    let header = &archive.header;
    let seconds = header.created.round(jiff::Unit::Second).unwrap_or(header.created);
    let keys = if archive.files.is_empty() { "without" } else { "with" };
    format!(
        "Backup of {seconds}: revision {}, {} keys, {keys} the cluster's certificates and keys; from {} by {}",
        header.revision, header.keys, header.source, header.program
    )
}

fn check(args: &RestoreArgs) -> anyhow::Result<()> {
    let mut archive = open(&args.file)?;
    let mut entries = 0;
    let mut all = || -> Result<(), ArchiveError> {
        while let Some(part) = archive.entries()? {
            entries += part.len();
        }
        Ok(())
    };
    all().with_context(|| args.file.display().to_string())?;
    println!("{}", described(&archive));
    println!("It is whole: {entries} entries were read and their checksums agree");
    Ok(())
}

fn restore(args: &RestoreArgs) -> anyhow::Result<()> {
    let paths = Paths::new(&args.data.data_dir)?;
    let target = Target::of(&args.datastore)?;
    let archive = open(&args.file)?;
    let place = Place::claim(paths, &target, !archive.files.is_empty(), args.force)?;
    let (text, files) = (described(&archive), archive.files.clone());
    let mut content = archive.into_content()?;
    content.begin_epoch(args.bump_revision);
    let revision = content.export.revision;
    let done = place.fill(content, &files)?;
    println!("{text}");
    println!("Restored into {}; revisions go on from {revision}", done.place);
    for aside in done.aside {
        println!("What was there is in {aside}");
    }
    Ok(())
}
