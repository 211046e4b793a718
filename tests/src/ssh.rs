//! Logging in to guests as people do: OpenSSH, with a key of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::run;
use crate::namespace::Namespace;

/// A key pair in a folder of the test's.
#[derive(Debug, Clone)]
pub struct SshKey {
    private: PathBuf,
}

impl SshKey {
    /// Makes a pair in `folder`, which must hold none yet.
    ///
    /// # Panics
    /// If `ssh-keygen` fails.
    #[track_caller]
    pub fn generate(folder: &Path) -> Self {
        let private = folder.join("ssh-key");
        run(Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "e2e", "-f"])
            .arg(&private));
        Self { private }
    }

    /// The line for `ssh_authorized_keys`.
    pub fn public(&self) -> String {
        let line =
            fs::read_to_string(self.private.with_extension("pub")).expect("ssh-keygen wrote both halves");
        line.trim().to_owned()
    }

    /// `ssh root@host command`, from inside a namespace. Nobody's configuration or known hosts play a part.
    pub fn login(&self, from: &Namespace, host: &str, command: &str) -> Command {
        self.login_on(from, host, 22, command)
    }

    /// The same on another port than sshd's own.
    pub fn login_on(&self, from: &Namespace, host: &str, port: u16, command: &str) -> Command {
        let mut ssh = from.command("ssh");
        ssh.args(["-F", "none", "-i"]).arg(&self.private);
        for option in [
            "IdentitiesOnly=yes",
            "BatchMode=yes",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=ERROR",
            "ConnectTimeout=30",
            // A guest that answers nothing for two minutes ends the login, and not the whole test's time.
            "ServerAliveInterval=30",
            "ServerAliveCountMax=4",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.arg("-p").arg(port.to_string()).arg(format!("root@{host}")).arg(command);
        ssh
    }
}
