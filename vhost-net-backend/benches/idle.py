#!/usr/bin/env python3
"""What ten links cost when nothing happens: vhost-net-backend against DPDK's vhost PMD, which polls.

Each link has a guest (a virtio-user port of one testpmd, which only listens) and a tap without carrier. The CPU time of
all threads of the backend is read from the kernel at both ends of a window.
"""

import argparse
import os
import subprocess
import tempfile
import time

from peers import EAL, OURS, await_sockets, huge_pages, need_ours, running

LINKS = 10


def guest(sockets):
    vdevs = [f"--vdev=net_virtio_user{n},path={path},queue_size=256" for n, path in enumerate(sockets)]
    return EAL + ["--file-prefix", "guest", "--lcores", "0@0,1@0", *vdevs, "--", "-i", "--forward-mode=rxonly",
                  "--no-mlockall", "--total-num-mbufs=16384"]


def our_backend(sockets):
    links = [f"--link=vhost-user:{path},tap:tap{n}" for n, path in enumerate(sockets)]
    return [str(OURS), "--cores", "1", *links]


def dpdk_backend(sockets):
    vdevs = [f"--vdev=net_vhost{n},iface={path}" for n, path in enumerate(sockets)]
    return EAL + ["--file-prefix", "backend", "--lcores", "0@1,1@1", *vdevs, "--", "-i", "--forward-mode=io",
                  "--no-mlockall", "--total-num-mbufs=16384"]


def measure(backend, window, directory):
    """Share of one core that the backend took."""
    sockets = [f"{directory}/{backend.__name__}{n}" for n in range(LINKS)]
    with running(backend(sockets), f"{directory}/backend.log") as server:
        await_sockets(server, sockets)
        if backend is dpdk_backend:
            server.wait_for("testpmd>")
            server.say("start")
        with running(guest(sockets), f"{directory}/guest.log") as client:
            client.wait_for("testpmd>")
            client.say("start")
            time.sleep(2)
            before, begin = sum(server.threads()), time.monotonic()
            time.sleep(window)
            return (sum(server.threads()) - before) / 1e9 / (time.monotonic() - begin)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--window", type=float, default=20, help="seconds")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    need_ours()
    if not options.inside:
        os.execvp("unshare", ["unshare", "--net", "python3", __file__, "--inside", "--window", str(options.window)])
    for number in range(LINKS):
        subprocess.run(["ip", "tuntap", "add", "dev", f"tap{number}", "mode", "tap", "vnet_hdr"], check=True)
    with huge_pages(), tempfile.TemporaryDirectory() as directory:
        dpdk = measure(dpdk_backend, 2, directory)
        ours = measure(our_backend, options.window, directory)
    print("| idle | DPDK vhost | vhost-net-backend |\n| --- | --- | --- |")
    print(f"| {LINKS} links with guests, of one core | {dpdk:.1%} | {ours:.3%} |")


if __name__ == "__main__":
    main()
