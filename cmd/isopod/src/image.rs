//! `isopod image`: the node's images, seen and changed beside a running server or without one.

use crate::args::{ImageArgs, ImageCommand};
use crate::paths::Paths;
use indicatif::{DecimalBytes, MultiProgress, ProgressBar, ProgressStyle};
use isopod_runtime::{ImageStatus, Images, ProgressFn, PullProgress};
use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};

pub async fn run(args: ImageArgs) -> anyhow::Result<()> {
    let paths = Paths::new(&args.data.data_dir)?;
    let images = Images::open(&paths.runtime(), &args.private_registry)?;
    match args.command {
        ImageCommand::Ls => print(&table(&images.list()))?,
        ImageCommand::Pull { images: names } => {
            for name in &names {
                let id = pull(&images, name).await?;
                print(&format!("Pulled {}\n", described(&images, &id)))?;
            }
        }
        ImageCommand::Import { archives } => {
            for archive in &archives {
                for id in images.import(archive).await? {
                    print(&format!("Imported {}\n", described(&images, &id)))?;
                }
            }
        }
        ImageCommand::Rm { images: names } => {
            for name in &names {
                let gone = images.remove(name).await?;
                print(&format!("{} {name}\n", if gone { "Removed" } else { "Removed the name" }))?;
            }
        }
    }
    Ok(())
}

/// A reader that has seen enough (`head`) is no error.
fn print(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Its digits as other tools show them.
fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..12).unwrap_or(hex)
}

/// Names, id and size of an image that is here.
fn described(images: &Images, id: &str) -> String {
    let Some(image) = images.find(id) else { return short(id).into() };
    let names = if image.repo_tags.is_empty() { &image.repo_digests } else { &image.repo_tags };
    let names = if names.is_empty() { String::new() } else { format!("{} ", names.join(", ")) };
    format!("{names}({}, {})", short(id), DecimalBytes(image.size))
}

/// A row for each tag; an image without one is shown by its digests' repositories.
fn table(images: &[ImageStatus]) -> String {
    let none = || "<none>".to_owned();
    let mut rows: Vec<[String; 4]> = Vec::new();
    for image in images {
        let mut names: Vec<(String, String)> =
            image.repo_tags.iter().filter_map(|t| t.rsplit_once(':')).map(|(r, t)| (r.into(), t.into())).collect();
        if names.is_empty() {
            let repositories = image.repo_digests.iter().filter_map(|d| d.split_once('@'));
            names = repositories.map(|(r, _)| (r.into(), none())).collect();
            names.dedup();
        }
        if names.is_empty() {
            names.push((none(), none()));
        }
        let row =
            |(repository, tag)| [repository, tag, short(&image.id).to_owned(), DecimalBytes(image.size).to_string()];
        rows.extend(names.into_iter().map(row));
    }
    rows.sort();
    rows.insert(0, ["REPOSITORY", "TAG", "IMAGE ID", "SIZE"].map(String::from));
    let width = |column: usize| rows.iter().map(|r| r[column].len()).max().unwrap_or(0);
    let (a, b, c) = (width(0), width(1), width(2));
    rows.iter().map(|[r, t, i, s]| format!("{r:a$}   {t:b$}   {i:c$}   {s}\n")).collect()
}

async fn pull(images: &Images, name: &str) -> anyhow::Result<String> {
    if !io::stderr().is_terminal() {
        return Ok(images.pull(name, Some(lines(name))).await?);
    }
    let all = MultiProgress::new();
    let pulled = images.pull(name, Some(bars(name, &all)?)).await;
    all.clear()?;
    Ok(pulled?)
}

/// One bar for each layer that is downloaded, below a line that says what goes on.
fn bars(name: &str, all: &MultiProgress) -> anyhow::Result<ProgressFn> {
    let style = ProgressStyle::with_template("  {prefix}  {bar:32} {decimal_bytes:>10} of {decimal_total_bytes:<10}")?;
    let head = all.add(ProgressBar::new_spinner().with_style(ProgressStyle::with_template("{spinner} {msg}")?));
    head.enable_steady_tick(std::time::Duration::from_millis(100));
    let (all, name) = (all.clone(), name.to_owned());
    let layers: Mutex<BTreeMap<String, ProgressBar>> = Mutex::default();
    Ok(Arc::new(move |step| match step {
        PullProgress::Resolving => head.set_message(format!("{name}: asking the registry")),
        PullProgress::Layer(digest, done, size) => {
            head.set_message(format!("{name}: downloading"));
            let mut layers = layers.lock().unwrap_or_else(PoisonError::into_inner);
            let bar = layers.entry(digest).or_insert_with_key(|digest| {
                let bar = ProgressBar::new(size).with_style(style.clone());
                bar.set_prefix(short(digest).to_owned());
                all.add(bar)
            });
            bar.set_position(done);
            if done >= size {
                bar.abandon();
            }
        }
        PullProgress::Unpacking(_) => head.set_message(format!("{name}: unpacking")),
        PullProgress::Done => head.finish_and_clear(),
    }))
}

/// The same for logs and scripts: a line for each thing that is done.
fn lines(name: &str) -> ProgressFn {
    let name = name.to_owned();
    Arc::new(move |step| match step {
        PullProgress::Resolving => eprintln!("{name}: asking the registry"),
        PullProgress::Layer(digest, done, size) if done >= size => {
            eprintln!("{name}: layer {} downloaded ({})", short(&digest), DecimalBytes(size));
        }
        PullProgress::Unpacking(_) => eprintln!("{name}: unpacking"),
        PullProgress::Layer(..) | PullProgress::Done => {}
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_row_for_each_name() {
        let image = |id: &str, tags: &[&str], digests: &[&str], size| ImageStatus {
            id: format!("sha256:{}", id.repeat(64)),
            repo_tags: tags.iter().map(|t| (*t).into()).collect(),
            repo_digests: digests.iter().map(|d| (*d).into()).collect(),
            size,
            ..ImageStatus::default()
        };
        let images = [
            image(
                "b",
                &["localhost:5000/web:1", "localhost:5000/web:latest"],
                &["localhost:5000/web@sha256:1"],
                1_500_000,
            ),
            image("a", &[], &["docker.io/library/box@sha256:2"], 12),
            image("c", &[], &[], 0),
        ];
        assert_eq!(
            table(&images),
            "REPOSITORY              TAG      IMAGE ID       SIZE\n\
             <none>                  <none>   cccccccccccc   0 B\n\
             docker.io/library/box   <none>   aaaaaaaaaaaa   12 B\n\
             localhost:5000/web      1        bbbbbbbbbbbb   1.50 MB\n\
             localhost:5000/web      latest   bbbbbbbbbbbb   1.50 MB\n"
        );
        assert_eq!(table(&[]), "REPOSITORY   TAG   IMAGE ID   SIZE\n");
    }
}
