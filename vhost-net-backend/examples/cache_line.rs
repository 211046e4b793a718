//! How far apart this machine's first two CPUs are: prints the nanoseconds in which a cache line goes from one to the
//! other and back. The host of a virtual machine may move its CPUs at any time: some 60 ns where they share a core,
//! 150 and more where they share nothing. Benchmarks of two busy CPUs ask before and after each round.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_setaffinity};

const ROUNDS: u32 = 100_000;

static BALL: AtomicU32 = AtomicU32::new(0);

fn pin(core: usize) -> rustix::io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set)
}

fn await_ball(value: u32) {
    while BALL.load(Ordering::Acquire) != value {
        spin_loop();
    }
}

fn main() -> anyhow::Result<()> {
    let (pinned, ready) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let other = pin(1);
        let there = other.is_ok();
        if pinned.send(other).is_ok() && there {
            for round in 0..ROUNDS {
                await_ball(2 * round + 1);
                BALL.store(2 * round + 2, Ordering::Release);
            }
        }
    });
    pin(0)?;
    ready.recv()?.context("this needs two CPUs, 0 and 1")?;
    let begin = Instant::now();
    for round in 0..ROUNDS {
        BALL.store(2 * round + 1, Ordering::Release);
        await_ball(2 * round + 2);
    }
    println!("{}", begin.elapsed().as_nanos() / u128::from(ROUNDS));
    Ok(())
}
