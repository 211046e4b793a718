//! The supervisor: one process per VM, from `up` to `down`.
//!
//! It is started by `up` with the VM's lock as standard input and a pipe for its [`report`] as standard output, and
//! finds everything else in the VM's record. It starts the VMM ([`vmm`], [`spawn`]), follows it ([`instance`]),
//! starts it again as the run strategy says ([`restarts`]), carries its console, tells guests on the pod network who
//! they are ([`pod_nic`]), and those that a network gave addresses ([`bridged`]), plugs and unplugs PCI functions ([`hotplug`]) when asked to ([`requests`]), and publishes its
//! [`status`]. A SIGTERM ends guest, VM and supervisor in good order. It is single-threaded: the VMM dies with the thread that
//! started it.

mod backends;
mod bridged;
mod console;
mod hotplug;
mod instance;
mod limits;
mod passthrough;
mod pod_nic;
pub(crate) mod report;
pub(crate) mod requests;
mod restarts;
mod spawn;
mod status;
mod stop;
mod teller;
mod vmm;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use netns::{NetNs, NetNsError};
use rustix::io::fcntl_dupfd_cloexec;
use tokio::time::sleep;
use vm_api::vmi::Phase;

use self::bridged::BridgedError;
use self::console::{Console, ConsoleError};
use self::instance::Machine;
use self::pod_nic::{PodNic, PodNicError};
use self::report::Reporter;
use self::requests::Requests;
use self::restarts::{Ending, Next, Restarts};
use self::status::Publisher;
use self::stop::Stop;
use self::vmm::{Disks, StartError};
use crate::vm::layout::{Layout, VmId};
use crate::vm::lock::{Lock, LockError};
use crate::vm::record::{Record, RecordError};
use crate::vm::teardown::{self, TeardownError};

/// Why a supervisor ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SupervisorError {
    #[error("cannot take over what `up` left open")]
    Inherit(#[source] io::Error),
    #[error("cannot leave the session of `up`")]
    Session(#[source] io::Error),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("VM {0} has no record")]
    NoRecord(VmId),
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error("cannot start the event loop")]
    Runtime(#[source] io::Error),
    #[error(transparent)]
    Console(#[from] ConsoleError),
    #[error("cannot take requests on {}", path.display())]
    Requests { path: PathBuf, source: io::Error },
    #[error(transparent)]
    PodNic(#[from] PodNicError),
    #[error(transparent)]
    Bridged(#[from] BridgedError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the guest never ran: {0}")]
    NeverRan(String),
    #[error(transparent)]
    Teardown(#[from] TeardownError),
}

/// The `supervise` role: runs VM `id` to its end and removes it.
pub(crate) fn run(layout: &Layout, id: &VmId) -> Result<(), SupervisorError> {
    let (lock, pipe) = inherited().map_err(SupervisorError::Inherit)?;
    let lock = Lock::inherited(lock, &layout.lock(id))?;
    let mut reporter = Reporter::new(pipe);
    let ended = rustix::process::setsid()
        .map_err(|errno| SupervisorError::Session(errno.into()))
        .and_then(|_session| supervise(layout, id, &mut reporter));
    if let Err(error) = &ended {
        tracing::error!("{}", crate::chain(error));
    }
    // Before the report: whoever reads it finds nothing left.
    let torn_down = teardown::tear_down(layout, id);
    if let Err(error) = &ended {
        reporter.failed(crate::chain(error).to_string());
    }
    torn_down?;
    lock.release()?;
    ended
}

/// Standard input and output as they were given, which then become `/dev/null`.
fn inherited() -> io::Result<(OwnedFd, OwnedFd)> {
    let lock = fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let pipe = fcntl_dupfd_cloexec(io::stdout(), 3)?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(nothing.as_fd())?;
    rustix::stdio::dup2_stdout(nothing.as_fd())?;
    Ok((lock, pipe))
}

fn supervise(layout: &Layout, id: &VmId, reporter: &mut Reporter) -> Result<(), SupervisorError> {
    let directory = layout.vm_dir(id);
    let record = Record::read(&directory)?.ok_or_else(|| SupervisorError::NoRecord(id.clone()))?;
    let netns = NetNs::open(layout.netns(id))?;
    let pod_nics = PodNic::find(&record, &netns)?;
    let tellers = bridged::tellers(&record, &netns)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SupervisorError::Runtime)?;
    runtime.block_on(async {
        let mut machine = Machine {
            layout: layout.clone(),
            console: Console::open(&directory)?,
            requests: Requests::open(&directory)
                .map_err(|source| SupervisorError::Requests { path: directory.requests(), source })?,
            status: Publisher::new(layout.status(), &record),
            stop: Stop::new().map_err(SupervisorError::Runtime)?,
            directory,
            record,
            netns,
            pod_nics,
            tellers,
            reporter,
        };
        live(&mut machine).await
    })
}

/// Runs the guest again and again, as the strategy says, until it is to end for good.
async fn live(machine: &mut Machine<'_>) -> Result<(), SupervisorError> {
    let mut restarts = Restarts::new(machine.record.plan.run_strategy);
    let mut disks = Disks::Fresh;
    loop {
        let started = Instant::now();
        let ending = match machine.run_once(disks).await {
            Ok(ending) => ending,
            Err(error) if machine.reporter.is_first() => return Err(error.into()),
            Err(error) => Ending::Failed(crate::chain(&error).to_string()),
        };
        if machine.stop.is_asked() {
            return Ok(());
        }
        if machine.reporter.is_first() {
            return Err(SupervisorError::NeverRan(describe(&ending)));
        }
        let reason = describe(&ending);
        tracing::info!("the guest's run ended: {reason}");
        match &ending {
            Ending::Shutdown => machine.status.ended(Phase::Succeeded, &reason),
            Ending::Reset => machine.status.ended(Phase::Scheduled, &reason),
            Ending::Failed(_) => machine.status.ended(Phase::Failed, &reason),
        }
        disks = if ending == Ending::Reset { Disks::Kept } else { Disks::Fresh };
        let next = wait(restarts.after(&ending, started.elapsed()));
        let requests = &mut machine.requests;
        let refusing = async {
            loop {
                hotplug::refuse(requests.next().await);
            }
        };
        tokio::select! {
            () = machine.stop.asked() => return Ok(()),
            () = next => {}
            () = refusing => {}
        }
    }
}

async fn wait(next: Next) {
    match next {
        Next::Start(delay) => sleep(delay).await,
        Next::Nothing => std::future::pending().await,
    }
}

fn describe(ending: &Ending) -> String {
    match ending {
        Ending::Shutdown => "the guest shut down".to_owned(),
        Ending::Reset => "the guest restarts".to_owned(),
        Ending::Failed(message) => message.clone(),
    }
}
