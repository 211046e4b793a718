//! Commands that are killed, meet each other, or meet a guest that does not listen: nothing is left, nothing hangs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use e2e::{eventually, output};

use crate::vm_node::{BOOT, Node};

#[test]
fn an_up_that_is_killed_at_any_moment_is_cleared_away() {
    let node = Node::new();
    let before = node.before();
    let manifest = node.manifest("vm1.yaml");
    // Each is made by the next step of `up`; the last by the supervisor.
    for step in [
        "locks/default_vm1",
        "slots",
        "vms/default/vm1/record.json",
        "vms/default/vm1/seed.img",
        "netns/default_vm1",
        "cni",
        "vms/default/vm1/supervisor.log",
        "vms/default/vm1/console.sock",
        "vmi/default/vm1.json",
    ] {
        let mut up = node.up_command(&manifest, &[]).stderr(Stdio::null()).spawn().unwrap();
        let step = node.launcher.run_dir().join(step);
        eventually(&step.display().to_string(), BOOT, || step.exists().then_some(()));
        up.kill().unwrap();
        up.wait().unwrap();
        // What was not yet recorded is nothing to `down`, but to `gc`.
        node.launcher.run("down", &["vm1", "--now"]);
        node.launcher.run("gc", &[]);
        before.assert_unchanged();
    }
}

#[test]
fn of_two_ups_at_once_one_wins_and_the_other_says_so() {
    let node = Node::new();
    let before = node.before();
    let manifest = node.manifest("vm1.yaml");
    let start = || {
        let mut up = node.up_command(&manifest, &[]);
        up.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let both = [start(), start()].map(|up| up.wait_with_output().unwrap());
    let (won, lost): (Vec<_>, Vec<_>) = both.iter().partition(|up| up.status.success());
    let [lost] = lost.as_slice() else { panic!("{won:?}, {lost:?}") };
    let message = String::from_utf8_lossy(&lost.stderr);
    assert!(message.contains("VM default/vm1 is there already"), "{message}");
    assert_eq!(won.len(), 1);
    node.launcher.run("down", &["vm1", "--now"]);
    before.assert_unchanged();
}

#[test]
fn a_guest_that_ignores_the_power_button_is_stopped_after_its_grace_period() {
    let node = Node::new();
    let before = node.before();
    let manifest = node.manifest("vm1.yaml");
    let text = fs::read_to_string(&manifest).unwrap();
    let grace = "terminationGracePeriodSeconds: 30";
    assert!(text.contains(grace));
    fs::write(&manifest, text.replace(grace, "terminationGracePeriodSeconds: 2")).unwrap();
    node.up_as("vm1", &manifest, &[]);
    node.reach("vm1", "10.10.10.14");
    console_on_a_terminal(&node);
    node.in_guest("10.10.10.14", "killall -STOP acpid");
    assert_eq!(node.launcher.run("down", &["vm1"]), "default/vm1: down\n");
    before.assert_unchanged();
    let gone = output(&mut node.launcher.command("console", &["vm1"]));
    let message = String::from_utf8_lossy(&gone.stderr).into_owned();
    assert!(!gone.status.success() && message.contains("VM default/vm1 is not running"), "{message}");
}

/// `console` on a terminal, which `script` makes: raw while it lasts, left with Ctrl-].
fn console_on_a_terminal(node: &Node) {
    let console = node.launcher.command("console", &["vm1"]);
    let words = [console.get_program()].into_iter().chain(console.get_args());
    let line: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let mut script = Command::new("script")
        .args(["--quiet", "--flush", "--return", "--command"])
        .arg(format!("{}; stty --all", line.join(" ")))
        .arg("/dev/null")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keyboard = script.stdin.take().unwrap();
    let mut screen = script.stdout.take().unwrap();
    let mut shown = String::new();
    let mut wait_for = |text: &str| {
        while !shown.contains(text) {
            let mut bytes = [0; 4096];
            let length = screen.read(&mut bytes).unwrap();
            assert_ne!(length, 0, "the terminal closed before {text:?}: {shown}");
            shown.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
    };
    wait_for("Connected to default/vm1. Leave with Ctrl-].");
    // The echo of the typed line does not contain what the shell makes of it.
    keyboard.write_all(b"echo =$((40+1))=\r").unwrap();
    wait_for("=41=");
    keyboard.write_all(b"\x1d").unwrap();
    // The terminal is as it was: its own echo and line editing are back.
    wait_for("isig icanon iexten echo echoe");
    assert!(script.wait().unwrap().success());
}
