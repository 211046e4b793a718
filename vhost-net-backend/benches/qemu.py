#!/usr/bin/env python3
"""A Linux guest in QEMU and the host, by a tap, TCP: vhost-net-backend against QEMU's own tap backend, side by side.

The quick-test guest runs an iperf3 server; a client on the host sends to it and receives from it. QEMU emulates the guest's
CPU on any machine without KVM for Linux guests, and then that CPU, not the backend, may be what is busy: the share of a core
that each took is shown. Needs target/release/vhost-net-backend and the quick-test guest (tests/guest/build).
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

from peers import OURS, ROOT, await_sockets, need_ours, running

HOST, GUEST = "192.0.2.1", "192.0.2.2"
MAC = "02:00:00:00:00:0a"
SEED = {
    "meta-data": "instance-id: i-1\n",
    "user-data": "#cloud-config\nhostname: vm1\nruncmd:\n- iperf3 -s -D\n",
    "network-config": f"version: 2\nethernets:\n  a:\n    match: {{macaddress: '{MAC}'}}\n    addresses: [{GUEST}/24]\n",
}


def prepare(directory):
    """The guest's disk, and its initramfs with iperf3."""
    disk, initrd = f"{directory}/seed.img", f"{directory}/initrd"
    subprocess.run(["mkfs.vfat", "-C", "-n", "CIDATA", disk, "1024"], check=True, stdout=subprocess.DEVNULL)
    for name, content in SEED.items():
        pathlib.Path(directory, name).write_text(content)
        subprocess.run(["mcopy", "-i", disk, f"{directory}/{name}", "::"], check=True)
    build = subprocess.run([ROOT / "tests/guest/build"], check=True, capture_output=True, text=True)
    image = pathlib.Path(build.stdout.strip())
    shutil.copy(image / "initrd", initrd)
    with open(initrd, "ab") as file:
        subprocess.run([ROOT / "tests/guest/with", "iperf3"], check=True, stdout=file)
    return ["-kernel", str(image / "vmlinuz"), "-initrd", initrd, "-drive", f"file={disk},if=virtio,format=raw,readonly=on"]


def qemu(boot, directory, accel, netdev):
    return ["qemu-system-x86_64", "-machine", f"q35,memory-backend=mem,accel={accel}", "-cpu", "max", "-m", "256",
            "-object", "memory-backend-memfd,id=mem,size=256M,share=on", "-display", "none", "-no-reboot", "-append",
            "console=ttyS0 quiet", *boot, "-serial", f"file:{directory}/console", *netdev, "-device",
            f"virtio-net-pci,netdev=n,mac={MAC},romfile="]


def stream(seconds, *way):
    """Bits per second of one TCP connection, as its receiver counts them."""
    command = ["iperf3", "-c", GUEST, "-t", str(seconds), "--json", *way]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["end"]["sum_received"]["bits_per_second"]


def await_guest(process, directory, limit=120):
    end = time.monotonic() + limit
    console = pathlib.Path(directory, "console")
    while not (console.exists() and "guest ready" in console.read_text(errors="replace")):
        if process.child.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the guest did not start:\n{process.text()}\n{console.read_text(errors='replace')[-2000:]}")
        time.sleep(0.1)


def measure(boot, directory, options, ours):
    """To the guest and from it, in bits per second, each with the share of a core that QEMU's busiest thread took."""
    pathlib.Path(directory, "console").unlink(missing_ok=True)
    subprocess.run("ip link del tap0 2>/dev/null; ip tuntap add dev tap0 mode tap vnet_hdr && ip addr add "
                   f"{HOST}/24 dev tap0 && ip link set tap0 up", shell=True, check=True)
    socket = f"{directory}/guest"
    backend = [str(OURS), "--link", f"vhost-user:{socket},tap:tap0"] if ours else ["sleep", "infinity"]
    netdev = (["-chardev", f"socket,id=c,path={socket}", "-netdev", "vhost-user,id=n,chardev=c"] if ours else
              ["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no,vhost=off"])
    with running(backend, f"{directory}/backend.log") as server:
        if ours:
            await_sockets(server, [socket])
        with running(qemu(boot, directory, options.accel, netdev), f"{directory}/qemu.log") as vm:
            await_guest(vm, directory)
            results = []
            for way in ([], ["-R"]):
                rates, before, begin = [], vm.busiest(), time.monotonic()
                for _ in range(options.rounds):
                    rates.append(stream(options.seconds, *way))
                share = (vm.busiest() - before) / 1e9 / (time.monotonic() - begin)
                results.append((statistics.median(rates), share))
            return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accel", default="tcg", help="QEMU's accelerator: tcg, or kvm where Linux guests run under it")
    parser.add_argument("--rounds", type=int, default=3, help="connections each way, for each backend")
    parser.add_argument("--seconds", type=int, default=4, help="of each connection")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    need_ours()
    if not options.inside:
        os.execvp("unshare", ["unshare", "--net", "python3", __file__, "--inside", "--accel", options.accel, "--rounds",
                              str(options.rounds), "--seconds", str(options.seconds)])
    with tempfile.TemporaryDirectory() as directory:
        boot = prepare(directory)
        peer, ours = (measure(boot, directory, options, ours) for ours in (False, True))
    print(f"| QEMU guest, accel={options.accel}, TCP | QEMU's tap | vhost-net-backend | ratio | busiest thread of QEMU |")
    print("| --- | --- | --- | --- | --- |")
    for way, (theirs, their_share), (rate, share) in zip(("to the guest", "from the guest"), peer, ours):
        print(f"| {way} | {theirs / 1e9:.2f} Gbit/s | {rate / 1e9:.2f} Gbit/s | {rate / theirs:.2f} "
              f"| {their_share:.0%}, {share:.0%} of a core |", flush=True)


if __name__ == "__main__":
    main()
