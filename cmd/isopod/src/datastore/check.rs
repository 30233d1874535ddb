//! `isopod datastore check` and `repair`: a database in the data directory that no server has open.

use crate::args::DataDir;
use crate::paths::Paths;
use anyhow::{Context, bail};
use isopod_store::sqlite::{self, Repair};
use std::fmt::Display;

/// Keys of one sort that are named; the rest is counted.
const NAMED: usize = 1000;

/// Fails if there is damage, so that a script sees it too.
pub fn check(args: &DataDir) -> anyhow::Result<()> {
    let dir = Paths::new(&args.data_dir)?.store();
    exists(&dir)?;
    let damage = sqlite::check(&dir).context("cannot check the datastore")?;
    for what in &damage {
        println!("{what}");
    }
    if damage.is_empty() {
        println!("The datastore in {} is whole", dir.display());
        return Ok(());
    }
    bail!(
        "the datastore in {} is damaged: run `isopod datastore repair --data-dir {}`, or restore a backup",
        dir.display(),
        args.data_dir.display()
    )
}

pub fn repair(args: &DataDir) -> anyhow::Result<()> {
    let dir = Paths::new(&args.data_dir)?.store();
    exists(&dir)?;
    match sqlite::repair(&dir).context("cannot repair the datastore")? {
        None => println!("The datastore in {} is whole: nothing was changed", dir.display()),
        Some(repair) => print!("{}", report(&repair)),
    }
    Ok(())
}

/// The name of a data directory that is not there is a mistake, not an empty datastore.
fn exists(dir: &std::path::Path) -> anyhow::Result<()> {
    if !dir.is_dir() {
        bail!("there is no datastore in {}: name the server's --data-dir", dir.display());
    }
    Ok(())
}

fn report(repair: &Repair) -> String {
    let mut lines = Vec::new();
    for (page, table) in &repair.pages {
        lines.push(format!("damaged: page {page}, {}", table.as_deref().unwrap_or("of an unknown table")));
    }
    if repair.frames > 0 {
        lines.push(format!(
            "damaged: {} frames of the write-ahead log: what was written last may be lost or older, whatever it is",
            repair.frames
        ));
    }
    if let Some(since) = repair.since {
        lines.push(format!(
            "damaged: rows that came after revision {since}: any key may be older than it was, missing, or here again after \
             it was deleted"
        ));
    }
    let text = |key: &[u8]| key.escape_ascii().to_string();
    name(&mut lines, "lost", repair.lost.iter().map(|key| text(key)));
    let older =
        repair.older.iter().map(|(key, had, lost)| format!("{} is at revision {had}, {lost} is lost", text(key)));
    name(&mut lines, "older", older);
    name(&mut lines, "perhaps older, or deleted since", repair.unsure.iter().map(|key| text(key)));
    let leases = repair.leases.iter().map(|id| format!("lease {id}"));
    name(&mut lines, "has an hour again, its time is lost", leases);
    for path in &repair.kept {
        lines.push(format!("kept: {}", path.display()));
    }
    lines.push(format!("{} keys are there again; revisions go on after {}", repair.keys, repair.revision));
    lines.join("\n") + "\n"
}

fn name(lines: &mut Vec<String>, what: &str, all: impl ExactSizeIterator<Item = impl Display>) {
    let left = all.len().saturating_sub(NAMED);
    lines.extend(all.take(NAMED).map(|one| format!("{what}: {one}")));
    if left > 0 {
        lines.push(format!("{what}: {left} more"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_what_is_lost() {
        let repair = Repair {
            pages: vec![(7, Some("log".into())), (9, None)],
            frames: 2,
            since: Some(77),
            keys: 3,
            lost: vec![b"/registry/pods/a\xff".to_vec().into()],
            older: vec![("b".into(), 4, 6)],
            unsure: (0..NAMED + 5).map(|i| format!("c{i}").into()).collect(),
            leases: vec![12],
            revision: 100,
            kept: vec!["/d/state.db.damaged-1".into()],
        };
        let report = report(&repair);
        for line in [
            "damaged: page 7, log",
            "damaged: page 9, of an unknown table",
            "damaged: rows that came after revision 77: any key may be older than it was, missing, or here again after it was \
             deleted",
            "lost: /registry/pods/a\\xff",
            "older: b is at revision 4, 6 is lost",
            "perhaps older, or deleted since: 5 more",
            "has an hour again, its time is lost: lease 12",
            "kept: /d/state.db.damaged-1",
            "3 keys are there again; revisions go on after 100",
        ] {
            assert!(report.lines().any(|l| l == line), "{line}: {report}");
        }
    }
}
