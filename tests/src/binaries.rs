//! Where the workspace's built binaries are.

use std::env;
use std::path::PathBuf;

/// The folder that cargo puts the binaries in: two above the test's own executable (`…/debug/deps/netns-…`).
///
/// It doubles as a CNI plugin folder, since it holds our plugins under their own names.
pub fn binary_dir() -> PathBuf {
    let test = env::current_exe().expect("the test's own path is readable");
    test.ancestors().nth(2).expect("cargo puts tests into <profile>/deps").to_owned()
}

/// The path of one of our binaries.
///
/// # Panics
/// If it is not built: cargo builds the binaries of other packages only when asked to (`make` asks).
#[track_caller]
pub fn binary(name: &str) -> PathBuf {
    let path = binary_dir().join(name);
    assert!(path.is_file(), "{} is missing: run 'cargo build --workspace --bins'", path.display());
    path
}
