//! One run of the guest: from the start of its VMM to the VMM's end.

use std::future::pending;
use std::net::IpAddr;
use std::ops::ControlFlow;
use std::process::ExitStatus;
use std::time::Duration;

use netns::NetNs;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use vm_api::manifest::Binding;

use super::backends::{self, Backends};
use super::console::Console;
use super::hotplug::{Hotplug, Scene};
use super::pod_nic::PodNic;
use super::report::Reporter;
use super::requests::Requests;
use super::restarts::Ending;
use super::status::Publisher;
use super::stop::Stop;
use super::teller::Teller;
use super::vmm::{Disks, StartError, Started, Vmm};
use crate::control::{Command, Event};
use crate::observer::Observer;
use crate::vm::layout::{Layout, VmDir};
use crate::vm::record::{Record, ToGuest};

/// How long a VMM may take to stop when it is told to.
const STOP_WAIT: Duration = Duration::from_secs(5);
/// Changes of a NIC's addresses are taken at most this often: a guest decides how many there are.
const ADDRESS_PACE: Duration = Duration::from_millis(200);

/// What all runs of a VM's guest have in common.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    pub(super) layout: Layout,
    pub(super) directory: VmDir,
    pub(super) record: Record,
    pub(super) netns: NetNs,
    pub(super) pod_nics: Vec<PodNic>,
    /// For guests that have addresses of other networks.
    pub(super) tellers: Vec<Teller>,
    pub(super) console: Console,
    pub(super) requests: Requests,
    pub(super) status: Publisher,
    pub(super) stop: Stop,
    pub(super) reporter: &'a mut Reporter,
}

/// How far a guest's way to its end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// Nobody wants it to end.
    Running,
    /// The power button was pressed; it has until then.
    PoweringDown(Instant),
    /// The VMM was told to stop; it has until then.
    Stopping(Instant),
}

impl Machine<'_> {
    /// Runs the guest once: as a new instance on fresh disks, or as the same one after its own restart.
    pub(super) async fn run_once(&mut self, disks: Disks) -> Result<Ending, StartError> {
        match disks {
            Disks::Fresh => self.status.new_instance(),
            Disks::Kept => self.status.restarting(),
        }
        let Started { vmm, serial, unconnected } =
            Vmm::start(&self.directory, &self.record, &self.netns, disks)?;
        let mut backends = Backends::new(&self.record, &unconnected, &mut self.status);
        let (addresses, mut changes) = mpsc::channel(16);
        let _observers = self.observe(addresses);
        let Self { layout, directory, record, console, requests, status, stop, reporter, .. } = self;
        let grace = Duration::from_secs(record.plan.grace_seconds);
        let mut scene = Scene { layout, directory, record, status };
        let mut hotplug = Hotplug::default();
        let mut relay = Box::pin(async {
            console.relay(serial).await;
            pending::<()>().await;
        });
        let mut course = Course::Running;
        let said = loop {
            tokio::select! {
                event = vmm.event() => {
                    let heard = heard(event, &mut scene, &mut hotplug, &mut backends, reporter).await;
                    if let ControlFlow::Break(last) = heard {
                        break last;
                    }
                }
                (nic, socket) = backends.next() => vmm.command(&Command::Backend { nic, socket }),
                asked = requests.next() => hotplug.asked(asked, &vmm, &mut scene).await,
                () = hotplug.expired() => hotplug.expire(scene.record),
                Some((nic, addresses)) = changes.recv() => scene.status.addresses(nic, &addresses),
                () = stop.asked() => {
                    scene.status.stopping();
                    course = course.next(&vmm, grace);
                }
                () = course.expired() => {
                    if let Course::Stopping(_) = course {
                        break None;
                    }
                    course = course.next(&vmm, Duration::ZERO);
                }
                () = &mut relay => {}
            }
        };
        drop(relay);
        let status = vmm.end().await;
        hotplug.ended(&mut scene).await;
        Ok(ending(said, status.ok()))
    }

    /// Watches the addresses of all NICs, and tells the guest those it has to be told. It ends when the set is dropped.
    fn observe(&self, changes: mpsc::Sender<(usize, Vec<IpAddr>)>) -> JoinSet<()> {
        let mut observers = JoinSet::new();
        for nic in &self.pod_nics {
            // The VM works without the first; a guest that is told nothing does not.
            attend(&mut observers, nic.watch(&self.netns, changes.clone()));
            attend(&mut observers, nic.teller.serve(&self.netns));
        }
        for teller in &self.tellers {
            attend(&mut observers, teller.serve(&self.netns));
        }
        let nics = self.record.plan.nics.iter().zip(&self.record.nics).enumerate();
        for (index, (nic, wired)) in nics {
            // What a backend carries, it alone sees.
            if let ToGuest::VhostUser { socket, control, mtu: _ } = &wired.to_guest {
                let ask = backends::Question::new(socket, control, wired.mac);
                observers.spawn(ask.repeat(index, changes.clone()));
            }
            // What goes through a function of the hardware is not seen here.
            let (Binding::Bridge(_), ToGuest::Tap { tap, .. }) = (&nic.binding, &wired.to_guest) else {
                continue;
            };
            let expected: Vec<_> = nic.expected.iter().copied().chain(wired.given.addresses()).collect();
            match Observer::new(&self.netns, tap, wired.mac, &expected) {
                Ok(observer) => {
                    observers.spawn(watch(observer, index, changes.clone()));
                }
                // The VM works without; its status just shows no addresses.
                Err(error) => tracing::error!(interface = nic.name, "{}", crate::chain(&error)),
            }
        }
        observers
    }
}

/// Does what the VMM's event asks for; what is more than an event about the run is its last word.
async fn heard(
    event: Option<Event>,
    scene: &mut Scene<'_>,
    hotplug: &mut Hotplug,
    backends: &mut Backends,
    reporter: &mut Reporter,
) -> ControlFlow<Option<Event>> {
    match event {
        Some(Event::Running) => {
            scene.status.running();
            reporter.running();
        }
        Some(news @ (Event::Plugged { .. } | Event::NotPlugged { .. } | Event::Unplugged { .. })) => {
            if let Err(error) = hotplug.heard(news, scene).await {
                return ControlFlow::Break(Some(Event::Error { message: crate::chain(&error).to_string() }));
            }
        }
        Some(event) if backends.follow(&event, scene.status) => {}
        last => return ControlFlow::Break(last),
    }
    ControlFlow::Continue(())
}

/// Has something done beside the guest's run, for as long as it can be.
fn attend<E: std::error::Error + Send + 'static>(
    tasks: &mut JoinSet<()>,
    task: Result<impl Future<Output = E> + Send + 'static, E>,
) {
    let failed = |error: E| tracing::error!("{}", crate::chain(&error));
    match task {
        Ok(task) => drop(tasks.spawn(async move { failed(task.await) })),
        Err(error) => failed(error),
    }
}

async fn watch(observer: Observer, index: usize, changes: mpsc::Sender<(usize, Vec<IpAddr>)>) {
    let mut addresses = observer.addresses();
    let forward = async {
        while addresses.changed().await.is_ok() {
            let now = addresses.borrow_and_update().clone();
            if changes.send((index, now)).await.is_err() {
                return;
            }
            sleep(ADDRESS_PACE).await;
        }
    };
    tokio::select! {
        () = forward => {}
        error = observer.run() => tracing::error!("addresses are not observed any more: {}", crate::chain(&error)),
    }
}

impl Course {
    /// The next step towards the end.
    fn next(self, vmm: &Vmm, grace: Duration) -> Self {
        match self {
            Self::Running if !grace.is_zero() => {
                vmm.command(&Command::PowerButton);
                Self::PoweringDown(Instant::now() + grace)
            }
            Self::Running | Self::PoweringDown(_) => {
                vmm.command(&Command::Stop);
                Self::Stopping(Instant::now() + STOP_WAIT)
            }
            Self::Stopping(until) => Self::Stopping(until),
        }
    }

    async fn expired(&self) {
        match self {
            Self::Running => pending().await,
            Self::PoweringDown(until) | Self::Stopping(until) => sleep_until(*until).await,
        }
    }
}

/// What a VMM's last event and its exit status amount to.
fn ending(said: Option<Event>, status: Option<ExitStatus>) -> Ending {
    match said {
        Some(Event::Shutdown | Event::Stopped) => Ending::Shutdown,
        Some(Event::Reset) => Ending::Reset,
        Some(Event::Error { message }) => Ending::Failed(message),
        Some(
            Event::Running
            | Event::BackendConnected { .. }
            | Event::BackendLost { .. }
            | Event::Plugged { .. }
            | Event::NotPlugged { .. }
            | Event::Unplugged { .. },
        )
        | None => Ending::Failed(match status {
            Some(status) => format!("the VMM ended without a word: {status}"),
            None => "the VMM ended without a word".to_owned(),
        }),
    }
}
