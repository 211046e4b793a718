//! Running commands, with an error text that needs no second run to understand.

use std::process::{Child, Command, Output, Stdio};

/// Runs a command and gives what it printed on stdout.
///
/// # Panics
/// If it cannot start or exits with anything but 0.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(
        output.status.success(),
        "{command:?} failed: {}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8(output.stdout).unwrap_or_else(|error| panic!("{command:?} printed no UTF-8: {error}"))
}

/// Runs a command without stdin, whatever its exit code.
///
/// # Panics
/// If it cannot start.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    command
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"))
}

/// Runs a command line as a person would type it: words split at blanks, no quoting, no shell.
///
/// # Panics
/// As [`run`].
#[track_caller]
pub fn sh(line: &str) -> String {
    run(&mut split(line))
}

/// A command from a line of words.
#[track_caller]
pub(crate) fn split(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().expect("a command line has a first word"));
    command.args(words);
    command
}

/// A process in the background that is killed when the test is done with it.
#[derive(Debug)]
pub struct Daemon(Child);

impl Daemon {
    /// Starts it; its output joins the test's.
    ///
    /// # Panics
    /// If it cannot start.
    #[track_caller]
    pub fn start(command: &mut Command) -> Self {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        Self(child)
    }

    /// The process, for its pid, its pipes and its exit code.
    pub fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only if it has ended already, which is as good.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}
