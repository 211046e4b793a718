//! `macpool inspect`: who holds which address, and why. One line per address on stdout: address, state, owners.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use net_types::Mac;

use crate::store::dir::DirStore;
use crate::store::kube::inspect;

/// Of the journal in a directory.
pub fn dir(path: &Path, only: Option<Mac>) -> anyhow::Result<()> {
    let mut lines: BTreeMap<Mac, Vec<String>> = BTreeMap::new();
    for reservation in DirStore::read(path)? {
        let line = format!("reserved  {} ({})", reservation.owner, reservation.nic);
        lines.entry(reservation.mac).or_default().push(line);
    }
    print(&lines, only)
}

/// Of a cluster.
pub async fn kube(client: ::kube::Client, only: Option<Mac>) -> anyhow::Result<()> {
    print(&inspect::lines(client).await?, only)
}

fn print(lines: &BTreeMap<Mac, Vec<String>>, only: Option<Mac>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for (mac, reasons) in lines.iter().filter(|(mac, _)| only.is_none_or(|only| only == **mac)) {
        for reason in reasons {
            writeln!(out, "{mac}  {reason}")?;
        }
    }
    Ok(())
}
