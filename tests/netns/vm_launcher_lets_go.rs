//! A VM that `vm-launcher up` has started holds nothing that its caller had open: not a pipeline, not the lock of a script.

use std::fs;
use std::os::fd::AsFd as _;

use e2e::{Launcher, Sandbox};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

const VM: &str = "
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: alone}
spec: {domain: {memory: {guest: 64Mi}, devices: {autoattachPodInterface: false}}}
";

#[test]
fn what_the_caller_had_open_is_closed_when_the_caller_is_done() {
    let _sandbox = Sandbox::enter();
    let folder = tempfile::tempdir().unwrap();
    let launcher = Launcher::new(folder.path());
    let manifest = folder.path().join("vm.yaml");
    fs::write(&manifest, VM).unwrap();
    // Inherited by every program that this test starts, as a descriptor of a shell's is.
    let (ours, inherited) = nix::unistd::pipe().unwrap();
    let up = launcher.up_halted(&manifest, &[]);
    drop(inherited);
    let mut ends = [PollFd::new(ours.as_fd(), PollFlags::empty())];
    let waited = poll(&mut ends, PollTimeout::ZERO);
    let hung_up = ends[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
    let runs = launcher.run("list", &[]);
    launcher.run("down", &["alone", "--now"]);
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));
    assert!(runs.contains("Running"), "{runs}");
    assert!(waited.is_ok() && hung_up, "the VM has it open");
}
