#!/usr/bin/env python3
"""Two vhost-user ports joined: vhost-net-backend against DPDK's vhost PMD, side by side.

testpmd with two virtio-user ports is the guest: it circles frames between its ports through the backend under test.
One core for the backend, one for the guest. The two backends take turns, and a round counts only if backend and
guest both had their core for themselves: on a machine with other work, most rounds may not.

Needs root, two cores, dpdk-testpmd (Debian's dpdk-dev), 2 MiB huge pages (it reserves them, and gives them back), and
target/release/vhost-net-backend. Prints a Markdown table: frames per second through each port, and the ratio.
"""

import argparse
import os
import pathlib
import re
import statistics
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ROOT / "target/release/vhost-net-backend"
HUGE_PAGES = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
PAGES_NEEDED = 800
# Seconds of one measurement, and the share of the core that backend and guest must have had.
WINDOW = 1.5
SHARE = 0.9
# Line by line, though it is no terminal.
EAL = ["stdbuf", "-oL", "dpdk-testpmd", "--in-memory", "--single-file-segments", "--no-pci", "-m", "256"]


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


class Process:
    """A process at high priority, with its output in a file."""

    def __init__(self, command, log):
        self.log = open(log, "w+")
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self.log, stderr=subprocess.STDOUT,
                                      text=True, start_new_session=True)
        os.setpriority(os.PRIO_PROCESS, self.child.pid, -20)
        # The new session is a scheduling group of its own where the kernel makes such.
        group = pathlib.Path(f"/proc/{self.child.pid}/autogroup")
        if group.exists():
            group.write_text("-20")

    def say(self, line):
        self.child.stdin.write(line + "\n")
        self.child.stdin.flush()

    def text(self):
        return pathlib.Path(self.log.name).read_text()

    def wait_for(self, pattern, count=1, limit=20):
        end = time.monotonic() + limit
        while len(re.findall(pattern, self.text())) < count:
            if self.child.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{self.child.args[0]}: no {pattern!r} in its output:\n{self.text()[-2000:]}")
            time.sleep(0.02)

    def busiest(self):
        """Nanoseconds of CPU of the thread that had most."""
        threads = pathlib.Path(f"/proc/{self.child.pid}/task").iterdir()
        return max(int((thread / "schedstat").read_text().split()[0]) for thread in threads)

    def stop(self):
        self.child.kill()
        self.child.wait()


def received(process, reads):
    process.say("show port stats all")
    process.wait_for(r"Tx-pps", 2 * reads)
    return sum(int(count) for count in re.findall(r"RX-packets: (\d+)", process.text())[-2:])


def measure(backend, size, directory):
    """One round: frames per second through each port, and the smaller share of a core."""
    sockets = [f"{directory}/{n}" for n in range(2)]
    for path in sockets:
        pathlib.Path(path).unlink(missing_ok=True)
    server = Process(backend(sockets), f"{directory}/backend.log")
    try:
        end = time.monotonic() + 20
        while not all(pathlib.Path(path).is_socket() for path in sockets):
            if server.child.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the backend did not start:\n{server.text()}")
            time.sleep(0.02)
        if backend is dpdk_backend:
            server.wait_for("testpmd>")
            server.say("start")
        client = Process(guest(sockets, size), f"{directory}/guest.log")
        try:
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
        finally:
            client.stop()
    finally:
        server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 1518])
    parser.add_argument("--rounds", type=int, default=3, help="undisturbed rounds for each backend")
    parser.add_argument("--attempts", type=int, default=20, help="rounds at most for each backend")
    options = parser.parse_args()
    if not OURS.exists():
        raise SystemExit(f"{OURS} is missing: cargo build --release -p vhost-net-backend")
    pages = HUGE_PAGES.read_text()
    if int(pages) < PAGES_NEEDED:
        HUGE_PAGES.write_text(str(PAGES_NEEDED))
    print("| frame | DPDK vhost | vhost-net-backend | ratio | rounds |\n| --- | --- | --- | --- | --- |", flush=True)
    try:
        with tempfile.TemporaryDirectory() as directory:
            for size in options.sizes:
                print(row(size, options, directory), flush=True)
    finally:
        HUGE_PAGES.write_text(pages)


def row(size, options, directory):
    rates = {dpdk_backend: [], our_backend: []}
    attempts = 0
    while min(map(len, rates.values())) < options.rounds and attempts < options.attempts:
        attempts += 1
        for backend, good in rates.items():
            rate, share = measure(backend, size, directory)
            if share >= SHARE:
                good.append(rate)
    if not all(rates.values()):
        return f"| {size} B | no round of {attempts} was undisturbed: the machine is busy | | | |"
    dpdk, ours = (statistics.median(good) / 1e6 for good in rates.values())
    rounds = " + ".join(str(len(good)) for good in rates.values())
    return f"| {size} B | {dpdk:.2f} Mpps | {ours:.2f} Mpps | {ours / dpdk:.2f} | {rounds} |"


if __name__ == "__main__":
    main()
