#!/usr/bin/env python3
"""Two vhost-user ports joined: vhost-net-backend against DPDK's vhost PMD, side by side.

testpmd with two virtio-user ports is the guest: it circles frames between its ports through the backend under test.
One core for the backend, one for the guest.

Needs root, two cores, dpdk-testpmd (Debian's dpdk-dev), 2 MiB huge pages (it reserves them, and gives them back), and
target/release/vhost-net-backend and its example cache_line. Prints Markdown tables: frames per second through each port, and what a frame costs the
backend, in cycles of the time stamp counter. Each backend says itself how long it was at work, empty polls left out: testpmd by
--record-core-cycles (in a round of its own, because that costs something), ours by vhost_net_busy_seconds_total.

The host of a virtual machine moves its CPUs about, which changes every figure by a factor of two: only rounds with the CPUs
in the same place are compared, each place in a row of its own. Places are told by a cache line's round trip.
"""

import argparse
import contextlib
import pathlib
import re
import tempfile
import time

from peers import EAL, HEAD, OURS, WINDOW, await_sockets, compare, free_port, huge_pages, metrics, need_ours, running

METRICS = free_port()
# What testpmd says with --record-core-cycles: cycles, frames, MHz.
RECORDED = r"total cycles=(\d+) / total (?:RX|io) packets=(\d+)\) at (\d+) MHz"


def dpdk_backend(sockets, *more):
    vdevs = [f"--vdev=net_vhost{n},iface={path}" for n, path in enumerate(sockets)]
    return EAL + ["--file-prefix", "backend", "--lcores", "0@1,1@1", *vdevs, "--", "-i", "--forward-mode=io",
                  "--no-mlockall", "--rxd=1024", "--txd=1024", *more]


def recording_backend(sockets):
    return dpdk_backend(sockets, "--record-core-cycles")


def our_backend(sockets):
    first, second = (f"vhost-user:{path}" for path in sockets)
    return [str(OURS), "--cores", "1", "--metrics", f"127.0.0.1:{METRICS}", "--link", f"{first},{second}"]


def guest(sockets, size):
    vdevs = [f"--vdev=net_virtio_user{n},path={path},queues=1,queue_size=1024" for n, path in enumerate(sockets)]
    return EAL + ["--file-prefix", "guest", "--lcores", "0@0,1@0", *vdevs, "--", "-i", "--forward-mode=io",
                  "--no-mlockall", f"--txpkts={size}", "--rxd=1024", "--txd=1024"]


def received(process, reads):
    process.say("show port stats all")
    process.wait_for(r"Tx-pps", 2 * reads)
    return sum(int(count) for count in re.findall(r"RX-packets: (\d+)", process.text())[-2:])


@contextlib.contextmanager
def circling(backend, size, directory):
    """Backend and guest with frames that circle between them."""
    sockets = [f"{directory}/{n}" for n in range(2)]
    for path in sockets:
        pathlib.Path(path).unlink(missing_ok=True)
    with running(backend(sockets), f"{directory}/backend.log") as server:
        await_sockets(server, sockets)
        if backend is not our_backend:
            server.wait_for("testpmd>")
            server.say("start")
        with running(guest(sockets, size), f"{directory}/guest.log") as client:
            client.wait_for("testpmd>")
            client.say("start tx_first 16")
            time.sleep(0.5)
            yield server, client


def measure(backend, size, directory):
    """One round: frames per second through each port, and the smaller share of a core."""
    with circling(backend, size, directory) as (server, client):
        first, begin = received(client, 1), time.monotonic()
        cpu = [process.busiest() for process in (server, client)]
        time.sleep(WINDOW)
        shares = [(process.busiest() - was) / 1e9 for process, was in zip((server, client), cpu)]
        seconds = time.monotonic() - begin
        last = received(client, 2)
        return (last - first) / 2 / seconds, min(shares) / seconds


def dpdk_cycles(size, directory):
    """Cycles for each frame, and the counter's frequency in MHz."""
    with circling(recording_backend, size, directory) as (server, _):
        shown = []
        for reads in (1, 2):
            server.say("show fwd stats all")
            server.wait_for(RECORDED, reads)
            shown.append([float(number) for number in re.findall(RECORDED, server.text())[-1]])
            if reads == 1:
                time.sleep(WINDOW)
        (cycles, packets, _), (last_cycles, last_packets, megahertz) = shown
        return (last_cycles - cycles) / (last_packets - packets), megahertz


def our_cycles(size, directory, megahertz):
    with circling(our_backend, size, directory):
        first = metrics(METRICS)
        time.sleep(WINDOW)
        last = metrics(METRICS)
    grown = {name: last[name] - first[name] for name in first}
    return grown["vhost_net_busy_seconds_total"] * megahertz * 1e6 / grown["vhost_net_packets_total"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1518])
    parser.add_argument("--rounds", type=int, default=3, help="undisturbed rounds for each backend, in one place of the CPUs")
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
            print(compare(f"{size} B", measures, options), flush=True)
        print("\n" + HEAD.format("each frame costs the backend"), flush=True)
        _, megahertz = dpdk_cycles(options.sizes[0], directory)
        for size in options.sizes:
            measures = {
                "dpdk": lambda: (dpdk_cycles(size, directory)[0], 1),
                "ours": lambda: (our_cycles(size, directory, megahertz), 1),
            }
            print(compare(f"{size} B", measures, options, lambda cycles: f"{cycles:.0f} cycles",
                          lambda dpdk, ours: dpdk / ours), flush=True)


if __name__ == "__main__":
    main()
