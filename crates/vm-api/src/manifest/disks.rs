//! From a manifest as written to a [`VmSpec`](super::VmSpec): disks, joined with their volumes by name.
//!
//! A name that occurs twice, or only among the disks, is an error naming the entry; a volume that no disk uses is
//! harmless and left out, as KubeVirt does.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::check::{At, FieldError, image_ref, path_in_image};
use super::raw;
use super::spec::{Disk, DiskSource, Seed};
use crate::names;

/// Length of a virtio disk's serial (`VIRTIO_BLK_ID_BYTES`, `linux/virtio_blk.h`).
const SERIAL_BYTES: usize = 20;

/// Joins `domain.devices.disks` with `volumes`; `at` is the instance's spec.
pub(super) fn disks(
    disks: Vec<raw::Disk>,
    volumes: Vec<raw::Volume>,
    at: &At,
) -> Result<Vec<Disk>, FieldError> {
    let disks_at = at.field("domain").field("devices").field("disks");
    let volumes_at = at.field("volumes");
    let mut by_name = BTreeMap::new();
    for (index, volume) in volumes.into_iter().enumerate() {
        let at = volumes_at.item(index);
        names::label(&volume.name).map_err(|error| at.field("name").problem(error))?;
        let name = volume.name.clone();
        if by_name.insert(name.clone(), source(volume, &at)?).is_some() {
            return Err(at.field("name").conflict(format!("a second volume is called {name:?}")));
        }
    }
    let mut checked: Vec<Disk> = Vec::with_capacity(disks.len());
    for (index, raw::Disk { name, serial, disk }) in disks.into_iter().enumerate() {
        let at = disks_at.item(index);
        if checked.iter().any(|disk| disk.name == name) {
            return Err(at.field("name").conflict(format!("a second disk is called {name:?}")));
        }
        let Some(source) = by_name.remove(&name) else {
            return Err(at.field("name").conflict(format!("no volume is called {name:?}")));
        };
        let is_seed = |source: &DiskSource| matches!(source, DiskSource::Seed(_));
        if is_seed(&source) && checked.iter().any(|disk| is_seed(&disk.source)) {
            return Err(at.conflict("a second cloudInitNoCloud disk; cloud-init reads one"));
        }
        bus(disk.bus.as_deref(), &at.field("disk").field("bus"))?;
        let read_only = disk.readonly || is_seed(&source);
        checked.push(Disk { serial: serial_number(serial, &at.field("serial"))?, name, read_only, source });
    }
    Ok(checked)
}

fn bus(bus: Option<&str>, at: &At) -> Result<(), FieldError> {
    match bus {
        None | Some("" | "virtio") => Ok(()),
        Some(other) => Err(at.not_allowed(other, "virtio; there is no other disk controller")),
    }
}

fn serial_number(serial: Option<String>, at: &At) -> Result<Option<String>, FieldError> {
    let Some(serial) = serial.filter(|serial| !serial.is_empty()) else { return Ok(None) };
    let fine = serial.len() <= SERIAL_BYTES && serial.bytes().all(|byte| byte.is_ascii_graphic());
    if fine {
        Ok(Some(serial))
    } else {
        Err(at.not_allowed(serial, "at most 20 printable ASCII characters without spaces"))
    }
}

fn source(volume: raw::Volume, at: &At) -> Result<DiskSource, FieldError> {
    let raw::Volume { name: _, cloud_init_no_cloud, container_disk, host_disk } = volume;
    match (cloud_init_no_cloud, container_disk, host_disk) {
        (Some(cloud_init), None, None) => {
            seed(cloud_init, &at.field("cloudInitNoCloud")).map(DiskSource::Seed)
        }
        (None, Some(raw::ContainerDisk { image, path }), None) => {
            let at = at.field("containerDisk");
            let image = image_ref(image, &at.field("image"))?;
            let path = path.map(|path| path_in_image(path, &at.field("path"))).transpose()?;
            Ok(DiskSource::ContainerDisk { image, path })
        }
        (None, None, Some(raw::HostDisk { path, r#type })) => {
            let at = at.field("hostDisk");
            match r#type.as_deref() {
                Some("Disk") => {}
                other => {
                    let other = other.unwrap_or_default();
                    return Err(at.field("type").not_allowed(other, "Disk; images are not created"));
                }
            }
            if !path.starts_with('/') || path.contains('\0') {
                return Err(at.field("path").not_allowed(path, "an absolute path"));
            }
            Ok(DiskSource::HostDisk { path: PathBuf::from(path) })
        }
        _ => Err(at.conflict("exactly one of cloudInitNoCloud, containerDisk and hostDisk is required")),
    }
}

fn seed(raw: raw::CloudInit, at: &At) -> Result<Seed, FieldError> {
    let raw::CloudInit { user_data, user_data_base64, network_data, network_data_base64 } = raw;
    let user_data = plain_or_base64("userData", user_data, user_data_base64, at)?;
    let network_data = plain_or_base64("networkData", network_data, network_data_base64, at)?;
    if user_data.is_none() && network_data.is_none() {
        return Err(at.conflict("userData or networkData is required"));
    }
    Ok(Seed { user_data, network_data })
}

/// `<name>` as it is, or `<name>Base64` decoded; not both.
fn plain_or_base64(
    name: &str,
    plain: Option<String>,
    base64: Option<String>,
    at: &At,
) -> Result<Option<Vec<u8>>, FieldError> {
    let given = |text: &String| !text.is_empty();
    match (plain.filter(given), base64.filter(given)) {
        (Some(_), Some(_)) => Err(at.conflict(format!("{name} and {name}Base64 exclude one another"))),
        (Some(text), None) => Ok(Some(text.into_bytes())),
        (None, Some(text)) => {
            let text: String = text.split_ascii_whitespace().collect();
            BASE64.decode(text).map(Some).map_err(|error| at.field(&format!("{name}Base64")).problem(error))
        }
        (None, None) => Ok(None),
    }
}
