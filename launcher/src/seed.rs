//! NoCloud seed disks: what cloud-init reads a VM's hostname, users and addresses from.
//!
//! A small FAT file system labelled `cidata` with `meta-data`, `user-data` and `network-config` (cloud-init's
//! "NoCloud" data source). The same input gives the same bytes: no time and no random number is in it, so a guest
//! sees a new instance only if its VM has another name. Called once per start of a VM; the guest reads it only.

use std::fs::File;
use std::io::{self, Cursor, Write as _};
use std::path::{Path, PathBuf};

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use vm_api::manifest::Seed;

/// What cloud-init looks for, padded as FAT wants it.
const LABEL: [u8; 11] = *b"cidata     ";
/// FAT's serial number; fixed, so that equal seeds are equal files.
const VOLUME_ID: u32 = 0x6775_6573;
/// Room for the file system's own tables and directory, and the least a guest's kernel mounts.
const OVERHEAD_BYTES: usize = 512 << 10;
/// Images are whole multiples of this.
const GRAIN_BYTES: usize = 64 << 10;

/// Why a seed disk could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SeedError {
    /// The file system could not be filled.
    #[error("cannot build the cloud-init seed ({operation})")]
    Image {
        /// What was tried.
        operation: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// The image could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// Writes the seed of VM `name` in `namespace` to `path`.
pub(crate) fn write(
    path: &Path,
    seed: &Seed,
    name: &str,
    namespace: &str,
    hostname: &str,
) -> Result<(), SeedError> {
    let meta_data = format!("instance-id: {name}.{namespace}\nlocal-hostname: {hostname}\n");
    let image = image(seed, meta_data.as_bytes())?;
    let written = File::create(path).and_then(|mut file| file.write_all(&image));
    written.map_err(|source| SeedError::Write { path: path.to_owned(), source })
}

fn image(seed: &Seed, meta_data: &[u8]) -> Result<Vec<u8>, SeedError> {
    let Seed { user_data, network_data } = seed;
    // cloud-init takes a seed without user-data for none at all.
    let user_data = user_data.as_deref().unwrap_or_default();
    let network_data = network_data.as_deref().unwrap_or_default();
    let content = meta_data.len() + user_data.len() + network_data.len();
    let size = (content + content / 8 + OVERHEAD_BYTES).next_multiple_of(GRAIN_BYTES);
    let mut disk = Cursor::new(vec![0; size]);
    let failed = |operation| move |source| SeedError::Image { operation, source };
    let options = FormatVolumeOptions::new().volume_label(LABEL).volume_id(VOLUME_ID);
    format_volume(&mut disk, options).map_err(failed("format"))?;
    {
        let file_system = FileSystem::new(&mut disk, FsOptions::new()).map_err(failed("open"))?;
        let root = file_system.root_dir();
        for (name, bytes) in
            [("meta-data", meta_data), ("user-data", user_data), ("network-config", network_data)]
        {
            // Without network-config cloud-init configures DHCP; an empty one would configure nothing.
            if name == "network-config" && bytes.is_empty() {
                continue;
            }
            let mut file = root.create_file(name).map_err(failed("create a file"))?;
            file.write_all(bytes).and_then(|()| file.flush()).map_err(failed("fill a file"))?;
        }
    }
    Ok(disk.into_inner())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn seed(user_data: &[u8], network_data: &[u8]) -> Seed {
        Seed { user_data: Some(user_data.to_vec()), network_data: Some(network_data.to_vec()) }
    }

    fn read(image: &[u8], name: &str) -> Option<Vec<u8>> {
        let file_system = FileSystem::new(Cursor::new(image.to_vec()), FsOptions::new()).unwrap();
        assert_eq!(file_system.volume_label(), "cidata");
        let mut bytes = Vec::new();
        file_system.root_dir().open_file(name).ok()?.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    #[test]
    fn the_three_files_are_on_a_disk_called_cidata() {
        let image = image(&seed(b"#cloud-config\n", b"version: 2\n"), b"instance-id: a.b\n").unwrap();
        assert_eq!(image.len() % 512, 0);
        assert_eq!(read(&image, "meta-data").unwrap(), b"instance-id: a.b\n");
        assert_eq!(read(&image, "user-data").unwrap(), b"#cloud-config\n");
        assert_eq!(read(&image, "network-config").unwrap(), b"version: 2\n");
    }

    #[test]
    fn without_network_data_the_guest_is_left_to_its_default() {
        let image = image(&Seed { user_data: None, network_data: None }, b"instance-id: a.b\n").unwrap();
        assert_eq!(read(&image, "user-data").unwrap(), b"");
        assert_eq!(read(&image, "network-config"), None);
    }

    #[test]
    fn equal_input_gives_equal_bytes_and_large_input_fits() {
        for size in [0, 1, 4096, 3 << 20] {
            let seed = seed(&vec![b'x'; size], b"version: 2\n");
            let first = image(&seed, b"m").unwrap();
            assert_eq!(first, image(&seed, b"m").unwrap(), "{size}");
            assert_eq!(read(&first, "user-data").unwrap().len(), size);
        }
    }
}
