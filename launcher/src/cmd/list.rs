//! `list`: the VMs of this node, one a line.

use std::io::{self, Write as _};

use clap::Args;
use vm_api::status_dir::StatusDirError;
use vm_api::vmi::Vmi;

use super::Directories;
use super::gc::names;
use super::status::{self, is_owned};

/// Lists the VMs of this node.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    #[command(flatten)]
    directories: Directories,
}

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    #[error("cannot find the working directory")]
    WorkingDirectory(#[source] io::Error),
    #[error(transparent)]
    Status(#[from] StatusDirError),
    #[error("cannot print")]
    Print(#[source] io::Error),
}

impl List {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), ListError> {
        let layout = self.directories.layout().map_err(ListError::WorkingDirectory)?;
        let status_dir = layout.status();
        let mut rows = vec![["NAMESPACE", "NAME", "PHASE", "READY", "ADDRESSES"].map(str::to_owned)];
        let mut namespaces = names(status_dir.root());
        namespaces.sort();
        for namespace in
            namespaces.iter().filter(|known| self.namespace.as_ref().is_none_or(|only| only == *known))
        {
            let mut files = names(&status_dir.root().join(namespace));
            files.sort();
            for name in files
                .iter()
                .filter_map(|file| file.strip_suffix(".json"))
                .filter(|name| !name.starts_with('.'))
            {
                if let Some(vmi) = status_dir.read(namespace, name)? {
                    rows.push(row(&vmi, is_owned(&layout, &vmi)));
                }
            }
        }
        let mut out = io::stdout().lock();
        for line in columns(&rows) {
            writeln!(out, "{line}").map_err(ListError::Print)?;
        }
        Ok(())
    }
}

fn row(vmi: &Vmi, owned: bool) -> [String; 5] {
    let addresses: Vec<_> = vmi
        .status
        .interfaces
        .iter()
        .filter(|interface| !interface.ip_address.is_empty())
        .map(|interface| format!("{}={}", interface.name, interface.ip_address))
        .collect();
    [
        vmi.metadata.namespace.clone(),
        vmi.metadata.name.clone(),
        status::phase(vmi, owned),
        status::ready(vmi, owned).to_owned(),
        if addresses.is_empty() { "-".to_owned() } else { addresses.join(",") },
    ]
}

/// Lines with cells of equal width.
fn columns<const N: usize>(rows: &[[String; N]]) -> Vec<String> {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    rows.iter()
        .map(|row| {
            let cells: Vec<_> =
                row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["NAME", "PHASE"].map(str::to_owned), ["a-long-name", "x"].map(str::to_owned)];
        assert_eq!(columns(&rows), ["NAME         PHASE", "a-long-name  x"]);
    }
}
