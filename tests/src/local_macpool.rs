//! A macpool of one machine, as `vm-launcher up --admit` uses it.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::{Daemon, binary, run};

/// A running macpool with a journal, which gives 02:00:00:00:00:00 to 02:00:00:00:00:ff and refuses duplicates.
#[derive(Debug)]
pub struct LocalMacpool {
    store: PathBuf,
    url: String,
    _process: Daemon,
}

impl LocalMacpool {
    /// Starts it with its journal below `folder`, and waits until it serves.
    #[track_caller]
    pub fn start(folder: &Path) -> Self {
        let store = folder.join("pool");
        let mut process = Daemon::start(
            Command::new(binary("macpool"))
                .arg(format!("--store=dir:{}", store.display()))
                .args(["--range", "02:00:00:00:00:00-02:00:00:00:00:ff"])
                .args(["--on-duplicate", "reject", "--log-format", "json"])
                .args(["--listen", "127.0.0.1:0", "--listen-metrics", "127.0.0.1:0"])
                .stderr(Stdio::piped()),
        );
        let mut lines = BufReader::new(process.child().stderr.take().unwrap()).lines().map(Result::unwrap);
        let address = lines.by_ref().find_map(|line| {
            let line: Value = serde_json::from_str(&line).unwrap();
            line["fields"]["address"].as_str().map(str::to_owned)
        });
        let address = address.unwrap_or_else(|| panic!("macpool ended before it served"));
        // Keep reading, or it blocks on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        let url = format!("https://{address}/mutate-virtualmachines");
        Self { store, url, _process: process }
    }

    /// Where VMs are reviewed.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The certificate that verifies it.
    pub fn ca(&self) -> PathBuf {
        self.store.join("ca.crt")
    }

    /// Who has which address.
    #[track_caller]
    pub fn reservations(&self) -> String {
        let store = format!("--store=dir:{}", self.store.display());
        run(Command::new(binary("macpool")).args(["inspect", &store]))
    }
}
