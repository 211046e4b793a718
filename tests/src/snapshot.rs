//! What there is, before and after: the proof that something "leaves nothing behind".

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};

use crate::binaries::binary_dir;
use crate::command::sh;

/// One line per thing the machine holds: links, addresses, routes, bridge VLANs, packet filter rules, named
/// namespaces, our processes, and the files of the folders asked for.
///
/// Counters, timers and kernel-chosen handles are left out, so two of an unchanged machine are equal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    files_of: Vec<PathBuf>,
    lines: BTreeSet<String>,
}

impl Snapshot {
    /// Looks at the network namespace the thread is in, and at all files below `files_of` (absent ones are empty).
    ///
    /// # Panics
    /// If the machine cannot be looked at: `ip`, `bridge` or `nft` is missing.
    #[track_caller]
    pub fn take(files_of: &[&Path]) -> Self {
        let mut lines = BTreeSet::new();
        let mut add = |kind: &str, text: &str| {
            lines.extend(
                text.lines().filter(|line| !line.trim().is_empty()).map(|line| format!("{kind}: {line}")),
            );
        };
        add("link", &links());
        add("address", &deliberate(&sh("ip -oneline address show")));
        add("route", &sh("ip -4 route show table all"));
        add("route", &deliberate(&sh("ip -6 route show table all")));
        add("vlan", &sh("bridge -oneline vlan show"));
        add("nft", &rules());
        add("netns", &names(Path::new("/run/netns")));
        add("process", &processes());
        for folder in files_of {
            add("file", &files(folder));
        }
        Self { files_of: files_of.iter().map(|path| path.to_path_buf()).collect(), lines }
    }

    /// Looks again and compares.
    ///
    /// # Panics
    /// If anything came or went, listing it.
    #[track_caller]
    pub fn assert_unchanged(&self) {
        let folders: Vec<&Path> = self.files_of.iter().map(PathBuf::as_path).collect();
        let now = Self::take(&folders);
        let gone = self.lines.difference(&now.lines).map(|line| format!("\n  - {line}"));
        let new = now.lines.difference(&self.lines).map(|line| format!("\n  + {line}"));
        let changes: String = gone.chain(new).collect();
        assert!(changes.is_empty(), "the machine is not as it was before:{changes}");
    }
}

/// The lines about what somebody configured: the kernel makes IPv6 link-local addresses and multicast routes by itself
/// whenever a link first gets its carrier.
fn deliberate(lines: &str) -> String {
    let kernel_made =
        |line: &&str| line.contains(" fe80::") || line.contains("fe80::/") || line.contains(" ff00::/8");
    lines.lines().filter(|line| !kernel_made(line)).map(|line| format!("{line}\n")).collect()
}

/// Links without what changes by itself: timers, and states that follow another link's with a delay.
fn links() -> String {
    let fleeting = |key: &str| {
        let follows_ports = ["tso_max_size", "tso_max_segs", "state", "topology_change_detected"];
        key.ends_with("_timer") || follows_ports.contains(&key)
    };
    let steady = |line: &str| {
        let mut words = line.split_whitespace();
        let mut kept = String::new();
        while let Some(word) = words.next() {
            kept.push_str(word);
            kept.push(' ');
            if fleeting(word) {
                words.next();
            }
        }
        kept + "\n"
    };
    let carrier = |line: &str| line.replace("NO-CARRIER,", "").replace(",LOWER_UP", "");
    sh("ip -oneline -details link show").lines().map(carrier).map(|line| steady(&line)).collect()
}

/// The rule set with its tables' names on every line, since a rule says nothing without its table.
fn rules() -> String {
    let mut table = String::new();
    let mut chain = String::new();
    let mut lines = String::new();
    for line in sh("nft --stateless list ruleset").lines().map(str::trim_end) {
        match line.chars().take_while(|c| *c == '\t').count() {
            0 => line.clone_into(&mut table),
            1 => line.clone_into(&mut chain),
            _ => {}
        }
        lines.push_str(&format!("{table} {chain} {line}\n"));
    }
    lines
}

/// The processes that run one of our binaries, this test aside, on this test's machine (see [`crate::Sandbox`]): those
/// of its mount namespace. A zombie has no binary and so does not count.
fn processes() -> String {
    let ours = binary_dir();
    let machine = fs::read_link("/proc/thread-self/ns/mnt").expect("a thread has a mount namespace");
    let mut lines = String::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let Ok(exe) = fs::read_link(entry.path().join("exe")) else { continue };
        let is_here = fs::read_link(entry.path().join("ns/mnt")).is_ok_and(|namespace| namespace == machine);
        if is_here && exe.parent() == Some(&ours) {
            lines.push_str(&format!("{} {}\n", entry.file_name().display(), exe.display()));
        }
    }
    lines
}

fn names(folder: &Path) -> String {
    let Ok(entries) = fs::read_dir(folder) else { return String::new() };
    entries.flatten().map(|entry| format!("{}\n", entry.file_name().display())).collect()
}

/// Everything below a folder, one line each: path, and the content's digest for a plain file. Empty if it is absent.
///
/// # Panics
/// If a file cannot be read.
#[track_caller]
pub fn files(folder: &Path) -> String {
    let Ok(entries) = fs::read_dir(folder) else { return String::new() };
    let mut lines = String::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("a listed file has a type");
        if kind.is_dir() {
            lines.push_str(&format!("{}/\n", path.display()));
            lines.push_str(&files(&path));
            continue;
        }
        let mut digest = DefaultHasher::new();
        if kind.is_file() {
            fs::read(&path).expect("files are readable as root").hash(&mut digest);
        }
        lines.push_str(&format!("{} {:x}\n", path.display(), digest.finish()));
    }
    lines
}
