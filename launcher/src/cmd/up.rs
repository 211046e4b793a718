//! `up`: starts the VMs of a manifest.
//!
//! Everything is read and checked before anything is touched. Then VM by VM: lock, set up, start the supervisor, wait
//! until the guest runs. If one fails, it and those started by this command are removed again.

use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use cni::runtime::{NetworkConfigError, NetworkConfigList, NetworkFileError};
use serde_json::Value;
use vm_api::manifest::{self, Manifest, ManifestError, RunStrategy, VmSpec};
use vm_api::nad::{self, Nad, NadError};
use vm_api::yaml::{self, YamlError};

use super::Directories;
use super::down::{self, DownError};
use crate::admit::{AdmitArgs, AdmitError};
use crate::kvm::{self, KvmError};
use crate::start::{self, StartError};
use crate::vm::devices::DevicePool;
use crate::vm::layout::{Layout, VmId};
use crate::vm::lock::{Lock, LockError, Locking};
use crate::vm::networks::{Networks, NetworksError};
use crate::vm::plan::{Plan, PlanError, Sources};
use crate::vm::pod_network;
use crate::vm::setup::{self, SetupError};
use crate::vm::slot;
use crate::vm::teardown::{self, TeardownError};

/// Starts the VMs of a manifest and returns when their guests run.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// YAML with VirtualMachines, and NetworkAttachmentDefinitions if you like; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Directory of NetworkAttachmentDefinitions (*.yaml, *.yml, *.json). May be given several times.
    #[arg(long, value_name = "DIR")]
    nad_dir: Vec<PathBuf>,
    /// Directory of unpacked images: image `a/b:1` is DIR/a/b:1.
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Kernel (bzImage or ELF) for VMs whose manifest names none.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk that goes with --kernel.
    #[arg(long, value_name = "FILE", requires = "kernel")]
    initrd: Option<PathBuf>,
    /// PCI functions for networks of a resource, as a device plugin would hand them out. May be given several times.
    #[arg(long, value_name = "RESOURCE=ADDRESS[,ADDRESS...]")]
    device_pool: Vec<DevicePool>,
    /// Directories of CNI plugins, joined by ':'; the directory of this program is searched last.
    #[arg(long, value_name = "DIRS", default_value = "/opt/cni/bin:/usr/lib/cni", env = "CNI_PATH")]
    plugin_path: String,
    /// CNI network that a VM's `pod: {}` means; without it, a bridge of the launcher's own with NAT to the node's uplink.
    #[arg(long, value_name = "CONFLIST")]
    pod_network: Option<PathBuf>,
    /// What guests that are told their addresses resolve names by, unless their network says.
    #[arg(long, value_name = "FILE", default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
    /// First of the 65536 user ids that VMs run as.
    #[arg(long, value_name = "UID", default_value_t = 0x7000_0000)]
    uid_base: u32,
    /// Refuse what would be ignored.
    #[arg(long)]
    strict: bool,
    /// Start VMs that the manifest says are halted (as `virtctl start` does: they always run then).
    #[arg(long)]
    start: bool,
    #[command(flatten)]
    admission: AdmitArgs,
    #[command(flatten)]
    directories: Directories,
}

/// Why `up` started nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpError {
    #[error("only root can set up networks for VMs")]
    NotRoot,
    #[error("--uid-base {0}: user ids from 1 to 4294901758 are allowed, since {slots} follow", slots = slot::SLOTS)]
    UidBase(u32),
    #[error("the current directory is not to be seen")]
    Directory(#[source] io::Error),
    #[error(transparent)]
    Read(#[from] yaml::ReadError),
    #[error("{}", path.display())]
    Yaml { path: PathBuf, source: YamlError },
    #[error("{}, document {number}", path.display())]
    Manifest { path: PathBuf, number: usize, source: ManifestError },
    #[error("{}, document {number}", path.display())]
    Nad { path: PathBuf, number: usize, source: NadError },
    #[error("VM {id} is not admitted")]
    Admission { id: VmId, source: AdmitError },
    #[error("--strict refuses what would be ignored: {0}")]
    Strict(String),
    #[error("{} has no VirtualMachine", .0.display())]
    NoVm(PathBuf),
    #[error("{0} is in the manifest twice")]
    Twice(VmId),
    #[error("VM {0} is halted by its manifest (running: false or runStrategy: Halted); --start starts it")]
    Halted(VmId),
    #[error(transparent)]
    Networks(#[from] NetworksError),
    #[error("--pod-network")]
    PodNetwork(#[from] NetworkFileError),
    #[error("the built-in pod network")]
    BuiltIn(#[source] NetworkConfigError),
    #[error("VM {id}")]
    Plan { id: VmId, source: PlanError },
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("VM {id} is there already: process {pid} runs it")]
    Busy { id: VmId, pid: i32 },
    #[error("cannot remove what is left of an earlier VM")]
    Leftover(#[source] TeardownError),
    #[error("VM {id}")]
    Setup { id: VmId, source: SetupError },
    #[error("VM {id}")]
    Start { id: VmId, source: StartError },
    #[error("cannot remove the VMs that were started before")]
    Undo(#[from] DownError),
}

impl Up {
    /// Runs the command.
    pub(crate) fn run(self) -> Result<(), UpError> {
        let layout = self.directories.layout().map_err(UpError::Directory)?;
        let plans = self.plans(&layout)?;
        super::gc::collect(&layout).log();
        let mut started: Vec<VmId> = Vec::new();
        for plan in plans {
            let id = plan.id.clone();
            if let Err(error) = self.up(&layout, plan) {
                for id in started.iter().rev() {
                    down::bring_down(&layout, id, down::Haste::AtOnce)?;
                }
                return Err(error);
            }
            println!("{id}: running");
            started.push(id);
        }
        Ok(())
    }

    /// Reads and checks everything; touches nothing.
    fn plans(&self, layout: &Layout) -> Result<Vec<Plan>, UpError> {
        let mut networks = Networks::default();
        let specs = self.specs(&mut networks)?;
        for directory in &self.nad_dir {
            networks.add_directory(directory)?;
        }
        let pod_network = match &self.pod_network {
            Some(path) => NetworkConfigList::read(path)?,
            None => pod_network::built_in(layout).map_err(UpError::BuiltIn)?,
        };
        let plugin_path = self.plugin_path();
        let absolute = |path: &Option<PathBuf>| path.as_deref().map(std::path::absolute).transpose();
        let [images, kernel, initrd] = [&self.images, &self.kernel, &self.initrd].map(absolute);
        let unseen = UpError::Directory;
        let (images, kernel, initrd) =
            (images.map_err(unseen)?, kernel.map_err(unseen)?, initrd.map_err(unseen)?);
        let resolv_conf = std::path::absolute(&self.resolv_conf).map_err(unseen)?;
        let devices = self.device_pool.iter().cloned().collect();
        let sources = Sources {
            networks: &networks,
            devices: &devices,
            pod_network: &pod_network,
            resolv_conf: &resolv_conf,
            images: images.as_deref(),
            kernel: kernel.as_deref(),
            initrd: initrd.as_deref(),
            plugin_path: &plugin_path,
        };
        let mut plans: Vec<Plan> = Vec::new();
        for spec in specs {
            let id = VmId { namespace: spec.namespace.clone(), name: spec.name.clone() };
            if plans.iter().any(|plan| plan.id == id) {
                return Err(UpError::Twice(id));
            }
            plans.push(Plan::new(spec, sources).map_err(|source| UpError::Plan { id, source })?);
        }
        if self.uid_base == 0 || self.uid_base.checked_add(slot::SLOTS).is_none_or(|end| end == u32::MAX) {
            return Err(UpError::UidBase(self.uid_base));
        }
        if !rustix::process::geteuid().is_root() {
            return Err(UpError::NotRoot);
        }
        kvm::open()?;
        Ok(plans)
    }

    /// The VMs of the manifest; its networks go to `networks`.
    fn specs(&self, networks: &mut Networks) -> Result<Vec<VmSpec>, UpError> {
        let path = &self.file;
        let documents = yaml::documents(&yaml::read(path)?)
            .map_err(|source| UpError::Yaml { path: path.clone(), source })?;
        let mut specs = Vec::new();
        for (number, document) in
            documents.into_iter().enumerate().map(|(index, document)| (index + 1, document))
        {
            if document.get("kind").and_then(|kind| kind.as_str()) == Some(nad::KIND) {
                let nad = Nad::try_from(document).map_err(|source| UpError::Nad {
                    path: path.clone(),
                    number,
                    source,
                })?;
                networks.add(path, nad);
                continue;
            }
            specs.push(self.spec(number, document)?);
        }
        if specs.is_empty() { Err(UpError::NoVm(path.clone())) } else { Ok(specs) }
    }

    /// One VM of the manifest, admitted and to be started.
    fn spec(&self, number: usize, document: Value) -> Result<VmSpec, UpError> {
        let wrong = |source| UpError::Manifest { path: self.file.clone(), number, source };
        // What cannot be run is not shown to anybody, who might reserve something for it.
        let Manifest { vm, ignored } = manifest::parse(document.clone()).map_err(wrong)?;
        let id = VmId { namespace: vm.namespace.clone(), name: vm.name.clone() };
        if self.strict && !ignored.is_empty() {
            return Err(UpError::Strict(manifest::join(&ignored)));
        }
        for finding in ignored {
            tracing::warn!(vm = %id, "ignored: {finding}");
        }
        if vm.run_strategy == RunStrategy::Halted && !self.start {
            return Err(UpError::Halted(id));
        }
        let admitted = self.admission.admit(document);
        let document = admitted.map_err(|source| UpError::Admission { id, source })?;
        let Manifest { mut vm, ignored: _ } = manifest::parse(document).map_err(wrong)?;
        if vm.run_strategy == RunStrategy::Halted {
            vm.run_strategy = RunStrategy::Always;
        }
        Ok(vm)
    }

    /// Where plugins are looked for: last beside this program, where the launcher's own are installed.
    fn plugin_path(&self) -> Vec<PathBuf> {
        let given = self.plugin_path.split(':').filter(|directory| !directory.is_empty()).map(PathBuf::from);
        let own = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
        given.chain(own).collect()
    }

    /// Starts one VM; after an error nothing of it is left.
    fn up(&self, layout: &Layout, plan: Plan) -> Result<(), UpError> {
        let id = plan.id.clone();
        let lock = match Lock::try_lock(&layout.lock(&id))? {
            Locking::Locked(lock) => lock,
            Locking::Busy(holder) => return Err(UpError::Busy { id, pid: holder.pid }),
        };
        teardown::tear_down(layout, &id).map_err(UpError::Leftover)?;
        let started = setup::set_up(layout, plan, self.uid_base, &self.plugin_path())
            .map_err(|source| UpError::Setup { id: id.clone(), source })
            .and_then(|_record| {
                start::supervisor(layout, &id, &lock)
                    .map_err(|source| UpError::Start { id: id.clone(), source })
            });
        if started.is_err() {
            if let Err(error) = teardown::tear_down(layout, &id) {
                tracing::error!("{}", crate::chain(&error));
            }
            lock.release()?;
        }
        started
    }
}
