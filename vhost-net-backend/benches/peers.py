"""What the benchmarks of vhost-net-backend share: processes at high priority, huge pages, the two backends, the guest.

The machine may have other work. A round counts only if both sides had their core for themselves (`SHARE`), the backends
take turns, and medians are compared: the ratio counts, not the figures.
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


def compare(label, measures, unit, options):
    """A row: DPDK and ours in turns, until each has enough rounds in which it had its cores."""
    rates = {name: [] for name in measures}
    attempts = 0
    while min(map(len, rates.values())) < options.rounds and attempts < options.attempts:
        attempts += 1
        for name, measure in measures.items():
            rate, share = measure()
            if share >= SHARE:
                rates[name].append(rate)
            print(f"  {label} {name}: {rate / 1e6:.2f} {unit}, {share:.0%} of a core", file=sys.stderr, flush=True)
    if not all(rates.values()):
        return f"| {label} | no round of {attempts} was undisturbed: the machine is busy | | | |"
    dpdk, ours = (statistics.median(rates[name]) for name in ("dpdk", "ours"))
    rounds = " + ".join(str(len(rates[name])) for name in ("dpdk", "ours"))
    return f"| {label} | {dpdk / 1e6:.2f} {unit} | {ours / 1e6:.2f} {unit} | {ours / dpdk:.2f} | {rounds} |"


HEAD = "| {} | DPDK vhost | vhost-net-backend | ratio | rounds |\n| --- | --- | --- | --- | --- |"
