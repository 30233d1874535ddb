//! All that the fuzzer learned, and all that it ever found, once more.

use isopod_e2e_fuzz::TARGETS;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// No input is worth more; most take microseconds.
const SLOW: Duration = Duration::from_secs(10);
/// Of all targets together.
const COMMITTED: u64 = 1 << 20;

/// Read when it runs: clones of the repository may share what was built.
fn corpus() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("corpus")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(corpus().join(target)).unwrap_or_else(|e| panic!("corpus/{target}: {e}"));
    let mut all: Vec<PathBuf> = entries.map(|e| e.expect("the directory can be read").path()).collect();
    all.sort();
    all
}

/// On a stack that is large enough for code that is not optimized.
fn replay(names: &'static [&str]) {
    let thread = std::thread::Builder::new().stack_size(32 << 20).spawn(move || replay_here(names));
    if let Err(why) = thread.expect("a thread can be started").join() {
        std::panic::resume_unwind(why);
    }
}

fn replay_here(names: &[&str]) {
    for target in TARGETS.iter().filter(|t| names.contains(&t.name)) {
        for path in inputs(target.name) {
            let data = fs::read(&path).expect("the file can be read");
            let started = Instant::now();
            if let Err(why) = std::panic::catch_unwind(|| (target.check)(&data)) {
                eprintln!("{} fails", path.display());
                std::panic::resume_unwind(why);
            }
            assert!(started.elapsed() < SLOW, "{} takes {:?}", path.display(), started.elapsed());
        }
    }
}

const SERVED: &[&str] = &["continue", "etcd", "request", "yaml"];

#[test]
fn what_was_learned_about_a_server_holds() {
    replay(SERVED);
}

#[test]
fn what_was_learned_about_the_rest_holds() {
    let rest: Vec<&str> = TARGETS.iter().map(|t| t.name).filter(|n| !SERVED.contains(n)).collect();
    replay(rest.leak());
}

#[test]
fn every_target_has_inputs_and_all_are_small() {
    let names: BTreeSet<String> = TARGETS.iter().map(|t| t.name.to_owned()).collect();
    let found: BTreeSet<String> = fs::read_dir(corpus())
        .expect("the corpus is there")
        .map(|e| e.expect("the directory can be read").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(found, names);
    let mut size = 0;
    for name in &names {
        let all = inputs(name);
        assert!(all.len() >= 5, "corpus/{name} has {} inputs", all.len());
        size += all.iter().map(|p| fs::metadata(p).map_or(0, |m| m.len())).sum::<u64>();
    }
    assert!(size < COMMITTED, "{size} bytes");
}
