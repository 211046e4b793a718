#!/usr/bin/env python3
"""Two vhost-user ports joined: vhost-net-backend against DPDK's vhost PMD, side by side.

testpmd with two virtio-user ports is the guest: it circles frames between its ports through the backend under test.
One core for the backend, one for the guest.

Needs root, two cores, dpdk-testpmd (Debian's dpdk-dev), 2 MiB huge pages (it reserves them, and gives them back), and
target/release/vhost-net-backend. Prints a Markdown table: frames per second through each port, and the ratio.
"""

import argparse
import pathlib
import re
import tempfile
import time

from peers import EAL, HEAD, OURS, WINDOW, await_sockets, compare, huge_pages, need_ours, running


def dpdk_backend(sockets):
    vdevs = [f"--vdev=net_vhost{n},iface={path}" for n, path in enumerate(sockets)]
    return EAL + ["--file-prefix", "backend", "--lcores", "0@1,1@1", *vdevs, "--", "-i", "--forward-mode=io",
                  "--no-mlockall", "--rxd=1024", "--txd=1024"]


def our_backend(sockets):
    first, second = (f"vhost-user:{path}" for path in sockets)
    return [str(OURS), "--cores", "1", "--link", f"{first},{second}"]


def guest(sockets, size):
    vdevs = [f"--vdev=net_virtio_user{n},path={path},queues=1,queue_size=1024" for n, path in enumerate(sockets)]
    return EAL + ["--file-prefix", "guest", "--lcores", "0@0,1@0", *vdevs, "--", "-i", "--forward-mode=io",
                  "--no-mlockall", f"--txpkts={size}", "--rxd=1024", "--txd=1024"]


def received(process, reads):
    process.say("show port stats all")
    process.wait_for(r"Tx-pps", 2 * reads)
    return sum(int(count) for count in re.findall(r"RX-packets: (\d+)", process.text())[-2:])


def measure(backend, size, directory):
    """One round: frames per second through each port, and the smaller share of a core."""
    sockets = [f"{directory}/{n}" for n in range(2)]
    for path in sockets:
        pathlib.Path(path).unlink(missing_ok=True)
    with running(backend(sockets), f"{directory}/backend.log") as server:
        await_sockets(server, sockets)
        if backend is dpdk_backend:
            server.wait_for("testpmd>")
            server.say("start")
        with running(guest(sockets, size), f"{directory}/guest.log") as client:
            client.wait_for("testpmd>")
            client.say("start tx_first 16")
            time.sleep(0.5)
            first, begin = received(client, 1), time.monotonic()
            cpu = [process.busiest() for process in (server, client)]
            time.sleep(WINDOW)
            shares = [(process.busiest() - was) / 1e9 for process, was in zip((server, client), cpu)]
            seconds = time.monotonic() - begin
            last = received(client, 2)
            return (last - first) / 2 / seconds, min(shares) / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1518])
    parser.add_argument("--rounds", type=int, default=3, help="undisturbed rounds for each backend")
    parser.add_argument("--attempts", type=int, default=20, help="rounds at most for each backend")
    options = parser.parse_args()
    need_ours()
    print(HEAD.format("two ports joined"), flush=True)
    with huge_pages(), tempfile.TemporaryDirectory() as directory:
        for size in options.sizes:
            measures = {
                "dpdk": lambda: measure(dpdk_backend, size, directory),
                "ours": lambda: measure(our_backend, size, directory),
            }
            print(compare(f"{size} B", measures, "Mpps", options), flush=True)


if __name__ == "__main__":
    main()
