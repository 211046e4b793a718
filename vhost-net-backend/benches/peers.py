"""What the benchmarks of vhost-net-backend share: processes at high priority, huge pages, the two backends, the guest.

The machine may have other work. A round counts only if both sides had their core for themselves (`SHARE`) and the host
had the two CPUs in one place all the time (`place`), and only rounds of one place are compared. The backends take turns,
and medians are compared: the ratio counts, not the figures.
"""

import collections
import contextlib
import os
import pathlib
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
OURS = ROOT / "target/release/vhost-net-backend"
CACHE_LINE = OURS.parent / "examples/cache_line"
# Nanoseconds of a cache line's round trip.
PLACES = [("near", 0, 120), ("far", 200, 600)]
HUGE_PAGES = pathlib.Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
PAGES_NEEDED = 800
# Seconds of one measurement, and the share of the core that backend and guest must have had.
WINDOW = 1.5
SHARE = 0.9
# Line by line, though it is no terminal.
EAL = ["stdbuf", "-oL", "dpdk-testpmd", "--in-memory", "--single-file-segments", "--no-pci", "-m", "256"]


def hurry():
    """Makes this process one of high priority."""
    # A new session is a scheduling group of its own where the kernel makes such.
    os.setsid()
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    group = pathlib.Path("/proc/self/autogroup")
    if group.exists():
        group.write_text("-20")


class Process:
    """A process at high priority, with its output in a file."""

    def __init__(self, command, log):
        self.log = open(log, "w+")
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self.log, stderr=subprocess.STDOUT,
                                      text=True, preexec_fn=hurry)

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

    def threads(self):
        """Nanoseconds of CPU of each thread."""
        threads = pathlib.Path(f"/proc/{self.child.pid}/task").iterdir()
        return [int((thread / "schedstat").read_text().split()[0]) for thread in threads]

    def busiest(self):
        return max(self.threads())

    def stop(self):
        self.child.kill()
        self.child.wait()


@contextlib.contextmanager
def running(command, log):
    process = Process(command, log)
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def huge_pages():
    """Reserves huge pages, and gives them back."""
    pages = HUGE_PAGES.read_text()
    try:
        # A machine that has run for long has few in one piece: its caches are moved out of the way.
        for _ in range(10):
            if int(HUGE_PAGES.read_text()) >= PAGES_NEEDED:
                break
            pathlib.Path("/proc/sys/vm/compact_memory").write_text("1")
            HUGE_PAGES.write_text(str(PAGES_NEEDED))
        else:
            raise SystemExit(f"only {HUGE_PAGES.read_text().strip()} of {PAGES_NEEDED} huge pages of 2 MiB can be had")
        yield
    finally:
        HUGE_PAGES.write_text(pages)


def need_ours():
    if not OURS.exists():
        raise SystemExit(f"{OURS} is missing: cargo build --release -p vhost-net-backend")
    if not CACHE_LINE.exists():
        raise SystemExit(f"{CACHE_LINE} is missing: cargo build --release -p vhost-net-backend --example cache_line")


def await_sockets(server, sockets, limit=20):
    end = time.monotonic() + limit
    while not all(pathlib.Path(path).is_socket() for path in sockets):
        if server.child.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"the backend did not start:\n{server.text()}")
        time.sleep(0.02)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def metrics(port):
    """What our backend counts: each metric, summed over its labels."""
    sums = collections.Counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if not line.startswith("#"):
                name, value = line.split("{")[0].split(" ")[0], line.rsplit(" ", 1)[1]
                sums[name] += float(value)
    return sums


def place():
    """Where the host has put our two CPUs, or None where that cannot be told from this."""
    trip = subprocess.run([CACHE_LINE], stdout=subprocess.PIPE, text=True, check=True, preexec_fn=hurry).stdout
    return next((name for name, least, most in PLACES if least <= int(trip) < most), None)


def mpps(rate):
    return f"{rate / 1e6:.2f} Mpps"


def compare(label, measures, options, shown=mpps, ratio=lambda dpdk, ours: ours / dpdk):
    """Rows, one for each place of the CPUs: both in turns, until one place has enough rounds of each."""
    places = collections.defaultdict(lambda: {name: [] for name in measures})
    for _ in range(options.attempts):
        for name, measure in measures.items():
            before = place()
            value, share = measure()
            if share >= SHARE and before and place() == before:
                places[before][name].append(value)
            print(f"  {label} {name}: {shown(value)}, {share:.0%} of a core, CPUs {before}", file=sys.stderr, flush=True)
        if any(min(map(len, values.values())) >= options.rounds for values in places.values()):
            break
    rows = []
    for where, values in sorted(places.items()):
        if all(values.values()):
            dpdk, ours = (statistics.median(values[name]) for name in ("dpdk", "ours"))
            rounds = " + ".join(str(len(values[name])) for name in ("dpdk", "ours"))
            rows.append(f"| {label}, CPUs {where} | {shown(dpdk)} | {shown(ours)} | {ratio(dpdk, ours):.2f} | {rounds} |")
    return "\n".join(rows) or f"| {label} | no round was undisturbed: the machine is busy | | | |"


HEAD = "| {} | DPDK vhost | vhost-net-backend | ratio | rounds |\n| --- | --- | --- | --- | --- |"
