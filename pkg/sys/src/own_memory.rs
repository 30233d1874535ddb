//! How much memory this process may use: the machine's, or what the control groups that it is in leave of it.

use crate::cgroup::Hierarchies;
use std::fs;
use std::path::Path;

/// In bytes. 0: it cannot be told.
pub fn own_memory() -> u64 {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let machine = machine(&read("/proc/meminfo"));
    let group = Hierarchies::detect().ok().and_then(|found| limit(&found, &read("/proc/self/cgroup")));
    group.map_or(machine, |limit| limit.min(machine))
}

fn machine(meminfo: &str) -> u64 {
    let kib = |line: &str| line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok();
    meminfo.lines().find_map(kib).unwrap_or(0) << 10
}

/// The lowest limit of a group and those above it. In a container the groups above are not seen, and the mounted one may be the
/// process's own.
fn limit(found: &Hierarchies, memberships: &str) -> Option<u64> {
    let (root, file, controller) = found.memory_limit_file()?;
    let path = memberships.lines().find_map(|line| {
        let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
        controllers.split(',').any(|c| c == controller).then_some(path)
    })?;
    let group = root.join(path.trim_start_matches('/'));
    let groups = group.ancestors().take_while(|dir| dir.starts_with(root));
    groups.filter_map(|dir| bound(&dir.join(file))).min()
}

/// `max`, and on version 1 a number beyond all memory: none.
fn bound(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(file: &str, limits: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (group, limit) in limits {
            fs::create_dir_all(dir.path().join(group)).unwrap();
            fs::write(dir.path().join(group).join(file), format!("{limit}\n")).unwrap();
        }
        dir
    }

    #[test]
    fn the_lowest_limit_counts() {
        assert_eq!(machine("MemTotal:       16384 kB\nMemFree: 1 kB\n"), 16 << 20);
        assert_eq!(machine(""), 0);
        assert!(own_memory() > 0);
        let limits = [("", "9223372036854771712"), ("a", "1000"), ("a/b", "2000"), ("c", "5")];
        let dir = tree("memory.limit_in_bytes", &limits);
        let found = Hierarchies::faked(&[("memory", dir.path())], None);
        assert_eq!(limit(&found, "3:cpu:/c\n2:blkio,memory:/a/b\n0::/c\n"), Some(1000));
        assert_eq!(limit(&found, "2:memory:/not/seen/here\n"), Some(9_223_372_036_854_771_712));
        assert_eq!(limit(&found, "0::/c\n"), None);
        let dir = tree("memory.max", &[("a", "max"), ("a/b", "2000"), ("c", "max")]);
        let found = Hierarchies::faked(&[], Some(dir.path()));
        assert_eq!(limit(&found, "0::/a/b\n"), Some(2000));
        assert_eq!(limit(&found, "0::/c\n"), None);
    }
}
