//! From a manifest as written to a [`VmSpec`]: the machine itself. Its devices are in [`super::disks`] and
//! [`super::nics`].

use std::time::Duration;

use net_types::{Mac, MacError, PciAddressError};

use super::disks::disks;
use super::nics;
use super::raw;
use super::spec::{ImageRef, KernelImage, RunStrategy, VmSpec};
use crate::names::{self, NameError};
use crate::quantity::{self, QuantityError};

const MIB: u64 = 1 << 20;
/// Less does not boot a Linux kernel with an initramfs.
const MIN_MEMORY_MIB: u64 = 32;
/// What 8-bit APIC identifiers can name, less the broadcast and the IOAPIC.
const MAX_VCPUS: u8 = 254;
/// Longest a guest may take to shut down: a day.
const MAX_GRACE_SECONDS: i64 = 86_400;
/// The x86 boot protocol's command line (2048 bytes) less what the VMM adds itself.
const MAX_KERNEL_ARGS: usize = 1500;

/// A field whose value is not allowed.
#[derive(Debug, thiserror::Error)]
#[error("{path}")]
pub struct FieldError {
    /// Where it stands in the manifest.
    pub path: String,
    /// What is wrong with it.
    #[source]
    pub problem: Problem,
}

/// What can be wrong with a field.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// Nothing there.
    #[error("is required")]
    Required,
    /// No Kubernetes name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No amount of bytes.
    #[error(transparent)]
    Quantity(#[from] QuantityError),
    /// No Ethernet address.
    #[error(transparent)]
    Mac(#[from] MacError),
    /// No PCI address.
    #[error(transparent)]
    PciAddress(#[from] PciAddressError),
    /// Not base64.
    #[error("is not base64")]
    Base64(#[from] base64::DecodeError),
    /// A value outside what is allowed.
    #[error("{value:?} is not allowed: {allowed}")]
    NotAllowed {
        /// As given.
        value: String,
        /// What would be.
        allowed: &'static str,
    },
    /// Two fields that exclude one another, or need one another.
    #[error("{0}")]
    Conflict(String),
}

/// Where in the manifest something stands, so that an error can name it.
#[derive(Debug, Clone)]
pub(super) struct At(pub(super) String);

impl At {
    pub(super) fn field(&self, name: &str) -> Self {
        if self.0.is_empty() { Self(name.to_owned()) } else { Self(format!("{}.{name}", self.0)) }
    }

    pub(super) fn item(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    pub(super) fn problem(&self, problem: impl Into<Problem>) -> FieldError {
        FieldError { path: self.0.clone(), problem: problem.into() }
    }

    pub(super) fn not_allowed(&self, value: impl ToString, allowed: &'static str) -> FieldError {
        self.problem(Problem::NotAllowed { value: value.to_string(), allowed })
    }

    pub(super) fn conflict(&self, message: impl Into<String>) -> FieldError {
        self.problem(Problem::Conflict(message.into()))
    }
}

/// Checks a `VirtualMachine`.
pub(super) fn machine(machine: raw::Machine) -> Result<VmSpec, FieldError> {
    let raw::Machine { metadata, spec: raw::MachineSpec { running, run_strategy, template } } = machine;
    let spec = At("spec".to_owned());
    let strategy = match (running, run_strategy) {
        (Some(_), Some(_)) => return Err(spec.conflict("running and runStrategy exclude one another")),
        (None, None) => return Err(spec.conflict("one of running and runStrategy is required")),
        (Some(true), None) => RunStrategy::Always,
        (Some(false), None) => RunStrategy::Halted,
        (None, Some(strategy)) => run_strategy_of(&strategy, &spec.field("runStrategy"))?,
    };
    let template = template.ok_or_else(|| spec.field("template").problem(Problem::Required))?;
    let identity = Identity { name: metadata.name, namespace: metadata.namespace };
    instance(identity, strategy, template, &spec.field("template").field("spec"))
}

/// Checks a `VirtualMachineInstance`: like Kubernetes, which never restarts one.
pub(super) fn standalone_instance(mut raw: raw::Instance) -> Result<VmSpec, FieldError> {
    let identity = Identity { name: raw.metadata.name.take(), namespace: raw.metadata.namespace.take() };
    instance(identity, RunStrategy::Once, raw, &At("spec".to_owned()))
}

/// `metadata` of the object itself, not of a template.
struct Identity {
    name: Option<String>,
    namespace: Option<String>,
}

impl Identity {
    /// Name and namespace.
    fn checked(self) -> Result<(String, String), FieldError> {
        let at = At("metadata".to_owned());
        let name = self.name.ok_or_else(|| at.field("name").problem(Problem::Required))?;
        names::subdomain(&name).map_err(|error| at.field("name").problem(error))?;
        let namespace = self.namespace.unwrap_or_else(|| "default".to_owned());
        names::label(&namespace).map_err(|error| at.field("namespace").problem(error))?;
        Ok((name, namespace))
    }
}

fn instance(
    identity: Identity,
    run_strategy: RunStrategy,
    raw: raw::Instance,
    at: &At,
) -> Result<VmSpec, FieldError> {
    let (name, namespace) = identity.checked()?;
    let raw::Instance { metadata, spec } = raw;
    let raw::InstanceSpec { hostname, termination_grace_period_seconds, domain, networks, volumes } = spec;
    let raw::Domain { cpu, memory, resources, firmware, devices } = domain;
    let in_domain = at.field("domain");
    let (kernel, kernel_args) = kernel(firmware, &in_domain.field("firmware").field("kernelBoot"))?;
    let raw::Devices { disks: raw_disks, interfaces, autoattach_pod_interface, network_interface_multiqueue } =
        devices;
    let nics = if interfaces.is_empty() && networks.is_empty() {
        autoattach_pod_interface.unwrap_or(true).then(nics::default).into_iter().collect()
    } else {
        nics::nics(interfaces, networks, &namespace, at)?
    };
    Ok(VmSpec {
        hostname: hostname_of(hostname, &name, &at.field("hostname"))?,
        name,
        namespace,
        labels: metadata.labels,
        annotations: metadata.annotations,
        run_strategy,
        grace_period: grace_period(
            termination_grace_period_seconds,
            &at.field("terminationGracePeriodSeconds"),
        )?,
        vcpus: vcpus(&cpu, &in_domain.field("cpu"))?,
        memory_mib: memory_mib(memory, resources, &in_domain)?,
        kernel,
        kernel_args,
        disks: disks(raw_disks, volumes, at)?,
        nics,
        multiqueue: network_interface_multiqueue.unwrap_or_default(),
    })
}

fn run_strategy_of(text: &str, at: &At) -> Result<RunStrategy, FieldError> {
    match text {
        "Always" => Ok(RunStrategy::Always),
        "RerunOnFailure" => Ok(RunStrategy::RerunOnFailure),
        "Manual" => Ok(RunStrategy::Manual),
        "Halted" => Ok(RunStrategy::Halted),
        "Once" => Ok(RunStrategy::Once),
        _ => Err(at.not_allowed(text, "Always, RerunOnFailure, Manual, Halted, Once")),
    }
}

/// A VM's name may have dots; a hostname is its first label.
fn hostname_of(hostname: Option<String>, name: &str, at: &At) -> Result<String, FieldError> {
    let hostname = hostname.unwrap_or_else(|| name.split('.').next().unwrap_or_default().to_owned());
    names::label(&hostname).map_err(|error| at.problem(error))?;
    Ok(hostname)
}

fn grace_period(seconds: Option<i64>, at: &At) -> Result<Duration, FieldError> {
    let seconds = seconds.unwrap_or(30);
    match u64::try_from(seconds) {
        Ok(allowed) if seconds <= MAX_GRACE_SECONDS => Ok(Duration::from_secs(allowed)),
        _ => Err(at.not_allowed(seconds, "0 to 86400 seconds")),
    }
}

fn vcpus(cpu: &raw::Cpu, at: &At) -> Result<u8, FieldError> {
    let raw::Cpu { cores, sockets, threads } = cpu;
    // KubeVirt reads 0 as "not given".
    let factors = [cores, sockets, threads].map(|factor| factor.filter(|count| *count > 0).unwrap_or(1));
    let vcpus = factors.iter().try_fold(1u32, |product, factor| product.checked_mul(*factor));
    vcpus.and_then(|vcpus| u8::try_from(vcpus).ok()).filter(|vcpus| *vcpus <= MAX_VCPUS).ok_or_else(|| {
        let [cores, sockets, threads] = factors;
        at.not_allowed(format!("{cores} cores x {sockets} sockets x {threads} threads"), "1 to 254 vCPUs")
    })
}

/// KubeVirt's order: `memory.guest`, else the request, else the limit.
fn memory_mib(memory: raw::Memory, resources: raw::Resources, at: &At) -> Result<u64, FieldError> {
    let guest = at.field("memory").field("guest");
    let amount = |list: raw::ResourceList, which: &str| {
        list.memory.map(|quantity| (quantity, at.field("resources").field(which).field("memory")))
    };
    let (quantity, at) = memory
        .guest
        .map(|quantity| (quantity, guest.clone()))
        .or_else(|| amount(resources.requests, "requests"))
        .or_else(|| amount(resources.limits, "limits"))
        .ok_or_else(|| guest.problem(Problem::Required))?;
    let text = match quantity {
        raw::Quantity::Number(number) => number.to_string(),
        raw::Quantity::Text(text) => text,
    };
    let mib = quantity::bytes(&text).map_err(|error| at.problem(error))?.div_ceil(MIB);
    if mib < MIN_MEMORY_MIB { Err(at.not_allowed(text, "at least 32Mi")) } else { Ok(mib) }
}

fn kernel(firmware: raw::Firmware, at: &At) -> Result<(Option<KernelImage>, String), FieldError> {
    let raw::KernelBoot { container, kernel_args } = firmware.kernel_boot.unwrap_or_default();
    let args = kernel_args.unwrap_or_default();
    let in_args = at.field("kernelArgs");
    if args.len() > MAX_KERNEL_ARGS {
        return Err(in_args.not_allowed(format!("{} bytes", args.len()), "at most 1500 bytes"));
    }
    if args.chars().any(char::is_control) {
        return Err(in_args.not_allowed(args, "one line of text without control characters"));
    }
    let Some(raw::KernelContainer { image, kernel_path, initrd_path }) = container else {
        return Ok((None, args));
    };
    let at = at.field("container");
    let image = image_ref(image, &at.field("image"))?;
    let kernel = kernel_path.ok_or_else(|| at.field("kernelPath").problem(Problem::Required))?;
    let kernel = path_in_image(kernel, &at.field("kernelPath"))?;
    let initrd = initrd_path.map(|path| path_in_image(path, &at.field("initrdPath"))).transpose()?;
    Ok((Some(KernelImage { image, kernel, initrd }), args))
}

pub(super) fn image_ref(image: String, at: &At) -> Result<ImageRef, FieldError> {
    let plain = |part: &str| {
        !part.starts_with('.')
            && !part.is_empty()
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-:@+".contains(&byte))
    };
    if image.len() <= 512 && image.split('/').all(plain) {
        Ok(ImageRef(image))
    } else {
        Err(at.not_allowed(image, "an image reference such as registry.example/kernels/debian:12"))
    }
}

pub(super) fn path_in_image(path: String, at: &At) -> Result<String, FieldError> {
    let fine = path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..");
    if fine { Ok(path) } else { Err(at.not_allowed(path, "an absolute path in the image, without \"..\"")) }
}

/// A MAC a guest's NIC can have.
pub(super) fn mac(text: &str, at: &At) -> Result<Mac, FieldError> {
    let mac: Mac = text.parse().map_err(|error: MacError| at.problem(error))?;
    if mac.is_unicast() { Ok(mac) } else { Err(at.not_allowed(text, "a unicast address that is not zero")) }
}
