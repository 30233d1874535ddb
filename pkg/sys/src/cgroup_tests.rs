//! Layouts, versions' units, and version 2's files in a directory that stands for the kernel's: the machine that runs the
//! tests may have version 1 only.

#![allow(clippy::unwrap_used)]

use super::*;

fn mounted(path: &str, fstype: &str, options: &str) -> MountPoint {
    MountPoint {
        path: path.into(),
        root: "/".into(),
        fstype: fstype.into(),
        options: options.split(',').map(str::to_owned).collect(),
        shared: false,
    }
}

#[test]
fn tells_the_three_layouts_apart() {
    let v2 = mounted("/sys/fs/cgroup", "cgroup2", "rw,nsdelegate");
    assert!(Hierarchies::from_mounts(&[v2]).is_unified());
    let hybrid = [
        mounted("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
        mounted("/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,name=systemd"),
        mounted("/sys/fs/cgroup/unified", "cgroup2", "rw"),
    ];
    let h = Hierarchies::from_mounts(&hybrid);
    assert!(!h.is_unified());
    let dirs = h.group("/a/b").unwrap().directories();
    assert_eq!(dirs.len(), 3, "{dirs:?}");
    // systemd's own hierarchy alone beside version 2 limits nothing: the controllers are version 2's.
    assert!(Hierarchies::from_mounts(&hybrid[1..]).is_unified());
}

#[test]
fn paths_that_leave_the_hierarchy_are_refused() {
    let h = Hierarchies::from_mounts(&[mounted("/sys/fs/cgroup", "cgroup2", "rw")]);
    for bad in ["", "/", "/a/../../b", "a//b", "./a"] {
        assert!(h.group(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn shares_become_weights() {
    for (shares, want) in [(0, 1), (2, 1), (1024, 100), (262_144, 10_000), (1_000_000, 10_000)] {
        assert_eq!(weight(shares), want, "{shares}");
    }
    assert!((2..262_144).step_by(997).map(weight).is_sorted());
}

#[test]
fn reads_keyed_numbers() {
    assert_eq!(keyed("oom 3\noom_kill 2\n", "oom_kill"), Some(2));
    assert_eq!(keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", "oom_kill"), Some(1));
    assert_eq!(keyed("a 1", "b"), None);
}

/// A version 2 hierarchy as the kernel shows it, made of files: what is written stays as written.
struct Tree(tempfile::TempDir);

impl Tree {
    /// The root, and the files of groups that the kernel would have made.
    fn new(groups: &[&str]) -> (Self, Hierarchies) {
        let tree = Tree(tempfile::tempdir().unwrap());
        for group in [""].iter().chain(groups) {
            tree.put(&format!("{group}/cgroup.controllers"), "cpu memory pids\n");
            tree.put(&format!("{group}/cgroup.subtree_control"), "\n");
        }
        let h = Hierarchies { v1: BTreeMap::new(), v2: Some(tree.0.path().into()) };
        assert!(h.is_unified());
        (tree, h)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file.trim_start_matches('/'))
    }

    fn put(&self, file: &str, text: &str) {
        fs::create_dir_all(self.path(file).parent().unwrap()).unwrap();
        fs::write(self.path(file), text).unwrap();
    }

    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.path(file)).unwrap()
    }
}

const LIMIT_FILES: [&str; 7] =
    ["cpu.weight", "cpu.max", "cpuset.cpus", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max"];

#[test]
fn a_group_of_version_2_is_made_level_by_level() {
    let (tree, h) = Tree::new(&["a"]);
    h.group("/a/b").unwrap().create().unwrap();
    assert!(tree.path("a/b").is_dir());
    // Of three writes the last is seen: each level above the group enables what it has, the group itself nothing.
    for level in ["", "a"] {
        assert_eq!(tree.text(&format!("{level}/cgroup.subtree_control")), "+pids", "{level:?}");
    }
    assert!(!tree.path("a/b/cgroup.subtree_control").exists());
    h.group("/a/b").unwrap().create().unwrap();
    // A controller that is refused is no reason to have no group.
    let (tree, h) = Tree::new(&[]);
    fs::remove_file(tree.path("cgroup.subtree_control")).unwrap();
    h.group("/c").unwrap().create().unwrap();
    assert!(h.group("/c").unwrap().exists());
    tree.put("file", "");
    assert!(h.group("/file/d").unwrap().create().is_err(), "a level that cannot be made");
}

#[test]
fn limits_of_version_2() {
    let all = Limits {
        cpu_shares: Some(1024),
        cpu_quota: Some(25_000),
        cpu_period: Some(50_000),
        cpuset_cpus: "0-1".into(),
        memory: Some(1 << 20),
        pids: Some(64),
        hugepages: [("2MB".to_owned(), 4 << 20)].into(),
        oom_group: true,
    };
    let none = Limits { cpu_quota: Some(-1), memory: Some(0), pids: Some(-1), ..Limits::default() };
    for (limits, want) in [
        (&all, ["100", "25000 50000", "0-1", "1048576", "0", "1", "64"]),
        (&none, ["old", "max 100000", "old", "max", "max", "old", "max"]),
        (
            &Limits { cpu_period: Some(20_000), ..Limits::default() },
            ["old", "max 20000", "old", "old", "old", "old", "old"],
        ),
        (&Limits::default(), ["old"; 7]),
    ] {
        let (tree, h) = Tree::new(&["g"]);
        LIMIT_FILES.iter().for_each(|f| tree.put(&format!("g/{f}"), "old"));
        tree.put("g/hugetlb.2MB.max", "old");
        h.group("g").unwrap().apply(limits).unwrap();
        let got = LIMIT_FILES.map(|f| tree.text(&format!("g/{f}")));
        assert_eq!(got, want, "{limits:?}");
    }
    // Without swap accounting, and on kernels that kill one process only, there is nothing to write.
    let (tree, h) = Tree::new(&["g"]);
    tree.put("g/memory.max", "max");
    h.group("g").unwrap().apply(&Limits { memory: Some(4096), oom_group: true, ..Limits::default() }).unwrap();
    assert_eq!(tree.text("g/memory.max"), "4096");
    assert!(!tree.path("g/memory.swap.max").exists() && !tree.path("g/memory.oom.group").exists());
}

#[test]
fn a_limit_without_its_controller_says_where_it_is_refused() {
    let limit = Limits { pids: Some(64), ..Limits::default() };
    let (tree, h) = Tree::new(&["a", "a/b"]);
    // Enabled at the root, refused below it.
    tree.put("cgroup.subtree_control", "memory pids\n");
    fs::remove_file(tree.path("a/cgroup.subtree_control")).unwrap();
    let e = h.group("a/b").unwrap().apply(&limit).unwrap_err();
    let refused = tree.path("a/cgroup.subtree_control").display().to_string();
    assert!(e.to_string().starts_with(&format!("cannot write \"+pids\" to {refused}: ")), "{e}");
    // Enabled everywhere, and still not there: the kernel has none.
    tree.put("a/cgroup.subtree_control", "pids\n");
    let e = h.group("a/b").unwrap().apply(&limit).unwrap_err();
    assert!(e.to_string().contains("a/b/pids.max"), "{e}");
    assert!(!tree.path("a/b/pids.max").exists());
    assert_eq!(tree.text("cgroup.subtree_control"), "memory pids\n", "what is enabled is not written again");
}
