//! nft(8): one process for each transaction or listing, JSON in and out, in the calling thread's network namespace.
//!
//! A pod's namespace holds few rules, so what makes nft expensive on a node (it reads everything first) does not
//! matter here: about 2 ms.

use std::io::{self, Write as _};
use std::process::{Command, Output, Stdio};

use nftables::schema::{NfListObject, NfObject, Nftables, Table};

const PROGRAM: &str = "nft";

/// Why nft did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    /// It could not be run.
    #[error("cannot run {PROGRAM}")]
    Run(#[source] io::Error),
    /// It refused; nothing has changed.
    #[error("{PROGRAM} refused to {what}: {}", said.trim())]
    Refused {
        /// What was asked.
        what: &'static str,
        /// What it said.
        said: String,
    },
    /// What it prints, or we write, is not what libnftables-json(5) says.
    #[error("{PROGRAM} and we do not understand each other")]
    Json(#[source] serde_json::Error),
}

/// Does all of a transaction, or nothing.
pub(crate) fn apply(transaction: &Nftables<'_>) -> Result<(), NftError> {
    feed("apply a ruleset", &["--json", "--file", "-"], transaction)
}

/// Has the kernel look at a transaction without doing it.
pub(crate) fn dry_run(transaction: &Nftables<'_>) -> Result<(), NftError> {
    feed("check a ruleset", &["--json", "--check", "--file", "-"], transaction)
}

/// What is in a table: the table itself, its chains, its rules by chain. None if there is no such table.
pub(crate) fn list(table: &Table<'_>) -> Result<Option<Vec<NfListObject<'static>>>, NftError> {
    let family = "inet";
    let Output { status, stdout, stderr } = Command::new(PROGRAM)
        .args(["--json", "list", "table", family, &table.name])
        .stdin(Stdio::null())
        .output()
        .map_err(NftError::Run)?;
    if !status.success() {
        let said = String::from_utf8_lossy(&stderr).into_owned();
        // The one errno that is an answer; nft has no exit code for it.
        return match said.contains("No such file or directory") {
            true => Ok(None),
            false => Err(NftError::Refused { what: "list a table", said }),
        };
    }
    let listed: Nftables<'static> = serde_json::from_slice(&stdout).map_err(NftError::Json)?;
    let objects = listed.objects.into_owned().into_iter().filter_map(|object| match object {
        NfObject::ListObject(NfListObject::MetainfoObject(_)) | NfObject::CmdObject(_) => None,
        NfObject::ListObject(object) => Some(object),
    });
    Ok(Some(objects.collect()))
}

fn feed(what: &'static str, arguments: &[&str], transaction: &Nftables<'_>) -> Result<(), NftError> {
    let text = serde_json::to_vec(transaction).map_err(NftError::Json)?;
    let mut process = Command::new(PROGRAM)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::Run)?;
    // Whatever it did not read, it says why below.
    let written = process.stdin.take().map_or(Ok(()), |mut pipe| pipe.write_all(&text));
    let Output { status, stderr, .. } = process.wait_with_output().map_err(NftError::Run)?;
    if status.success() {
        return written.map_err(NftError::Run);
    }
    Err(NftError::Refused { what, said: String::from_utf8_lossy(&stderr).into_owned() })
}
