#!/usr/bin/env python3
"""A guest that sends into a veth by AF_XDP: vhost-net-backend against DPDK's vhost and af_xdp PMDs, side by side.

testpmd with a virtio-user port sends 64-byte frames as fast as they are taken; what arrives is counted at the veth's
other end. One core for the backend, one for the guest. Needs what pair.py needs; works in a network namespace of its own.
"""

import argparse
import os
import pathlib
import subprocess
import tempfile
import time

from peers import EAL, HEAD, OURS, WINDOW, await_sockets, compare, huge_pages, need_ours, running


def dpdk_backend(socket):
    vdevs = [f"--vdev=net_vhost0,iface={socket}", "--vdev=net_af_xdp0,iface=nic"]
    return EAL + ["--file-prefix", "backend", "--lcores", "0@1,1@1", *vdevs, "--", "-i", "--forward-mode=io",
                  "--no-mlockall", "--rxd=1024", "--txd=1024"]


def our_backend(socket):
    return [str(OURS), "--cores", "1", "--link", f"vhost-user:{socket},af_xdp:nic"]


def guest(socket):
    vdev = f"--vdev=net_virtio_user0,path={socket},queues=1,queue_size=1024"
    return EAL + ["--file-prefix", "guest", "--lcores", "0@0,1@0", vdev, "--", "-i", "--forward-mode=txonly",
                  "--no-mlockall", "--txpkts=64", "--rxd=1024", "--txd=1024"]


def arrived():
    return int(pathlib.Path("/sys/class/net/peer/statistics/rx_packets").read_text())


def measure(backend, directory):
    """One round: frames per second at the veth's other end, and the smaller share of a core."""
    socket = f"{directory}/guest"
    pathlib.Path(socket).unlink(missing_ok=True)
    subprocess.run("ip link add nic type veth peer name peer && ip link set nic up && ip link set peer up",
                   shell=True, check=True)
    try:
        with running(backend(socket), f"{directory}/backend.log") as server:
            await_sockets(server, [socket])
            if backend is dpdk_backend:
                server.wait_for("testpmd>")
                server.say("start")
            with running(guest(socket), f"{directory}/guest.log") as client:
                client.wait_for("testpmd>")
                client.say("start")
                time.sleep(0.5)
                first, begin = arrived(), time.monotonic()
                cpu = [process.busiest() for process in (server, client)]
                time.sleep(WINDOW)
                shares = [(process.busiest() - was) / 1e9 for process, was in zip((server, client), cpu)]
                seconds = time.monotonic() - begin
                return (arrived() - first) / seconds, min(shares) / seconds
    finally:
        subprocess.run(["ip", "link", "del", "nic"], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="undisturbed rounds for each backend")
    parser.add_argument("--attempts", type=int, default=20, help="rounds at most for each backend")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    need_ours()
    if not options.inside:
        # A namespace, and a /sys that shows it.
        inside = f"mount -t sysfs sys /sys && exec python3 {__file__} --inside --rounds {options.rounds} " \
                 f"--attempts {options.attempts}"
        os.execvp("unshare", ["unshare", "--net", "--mount", "sh", "-c", inside])
    print(HEAD.format("vhost-user → AF_XDP on veth"), flush=True)
    with huge_pages(), tempfile.TemporaryDirectory() as directory:
        measures = {"dpdk": lambda: measure(dpdk_backend, directory), "ours": lambda: measure(our_backend, directory)}
        print(compare("64 B", measures, options), flush=True)


if __name__ == "__main__":
    main()
