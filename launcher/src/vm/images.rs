//! Files a VM is made of: kernels, initrds, disks.
//!
//! A file of an image is looked up inside the unpacked image ([`Located::in_image`]): its path and every symbolic
//! link in it are taken with the image's root as `/`, so an image cannot point at the node's own files. Looked up
//! and checked once by `up`, before anything is touched, and opened by the supervisor at every start.

use std::fs::{self, File, FileType, Metadata};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use serde::{Deserialize, Serialize};
use vm_api::manifest::ImageRef;

/// A file on the node, or in an unpacked image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Located {
    /// The image's root.
    root: Option<PathBuf>,
    /// Absolute: on the node, or in the image.
    path: PathBuf,
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// An image is named, but not where images are.
    #[error("image {0} is needed: give --images DIR, where it is unpacked as DIR/{0}")]
    NoImages(ImageRef),
    /// It cannot be opened.
    #[error("cannot open {file}")]
    Open {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// It cannot be read.
    #[error("cannot read {file}")]
    Read {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// Something else than is needed.
    #[error("{file} is not {expected}")]
    Kind {
        /// Which.
        file: String,
        /// What it should be.
        expected: &'static str,
    },
    /// An image without, or with too many disks.
    #[error(
        "{directory} holds {count} files; exactly one disk is expected, or name it with containerDisk.path"
    )]
    NotOneDisk {
        /// Where disks are looked for.
        directory: String,
        /// How many there are.
        count: usize,
    },
}

impl Located {
    /// A file of the node.
    pub(crate) fn on_node(path: &Path) -> Self {
        Self { root: None, path: path.to_owned() }
    }

    /// A file of the image `image`, unpacked below `images`.
    pub(crate) fn in_image(images: Option<&Path>, image: &ImageRef, path: &str) -> Result<Self, ImageError> {
        let images = images.ok_or_else(|| ImageError::NoImages(image.clone()))?;
        Ok(Self { root: Some(images.join(image.as_str())), path: PathBuf::from(path) })
    }

    /// The one disk in the image's `/disk`, where container disks keep it.
    pub(crate) fn disk_of_image(images: Option<&Path>, image: &ImageRef) -> Result<Self, ImageError> {
        let directory = Self::in_image(images, image, "/disk")?;
        let opened = directory.open_as(OFlags::RDONLY | OFlags::DIRECTORY)?;
        let read = |source| ImageError::Read { file: directory.to_string(), source };
        let entries = fs::read_dir(format!("/proc/self/fd/{}", opened.as_raw_fd())).map_err(read)?;
        let names: Vec<_> = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()
            .map_err(read)?;
        match names.as_slice() {
            [name] => Ok(Self { path: directory.path.join(name), ..directory }),
            _ => Err(ImageError::NotOneDisk { directory: directory.to_string(), count: names.len() }),
        }
    }

    /// Opens it for reading.
    pub(crate) fn open(&self) -> Result<File, ImageError> {
        self.open_as(OFlags::RDONLY)
    }

    /// Opens it for reading and writing.
    pub(crate) fn open_for_writing(&self) -> Result<File, ImageError> {
        self.open_as(OFlags::RDWR)
    }

    fn open_as(&self, flags: OFlags) -> Result<File, ImageError> {
        let failed = |source: io::Error| ImageError::Open { file: self.to_string(), source };
        let root = File::open(self.root.as_deref().unwrap_or(Path::new("/"))).map_err(failed)?;
        // Not blocking: a FIFO would wait for a writer.
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let resolve = if self.root.is_some() { ResolveFlags::IN_ROOT } else { ResolveFlags::empty() };
        let opened = openat2(&root, &self.path, flags, Mode::empty(), resolve);
        opened.map(File::from).map_err(|errno| failed(errno.into()))
    }

    /// Checks that it is a kernel: a bzImage (`Documentation/arch/x86/boot.rst`) or an ELF file.
    pub(crate) fn check_kernel(&self) -> Result<(), ImageError> {
        let file = self.open()?;
        self.regular(&file, "a kernel (bzImage or ELF)")?;
        let mut head = [0; 0x206];
        let read = file
            .read_at(&mut head, 0)
            .map_err(|source| ImageError::Read { file: self.to_string(), source })?;
        let is_elf = read > 4 && head[..4] == *b"\x7fELF";
        let is_bz_image =
            read == head.len() && head[0x1fe..0x200] == [0x55, 0xaa] && head[0x202..] == *b"HdrS";
        if is_elf || is_bz_image { Ok(()) } else { Err(self.kind("a kernel (bzImage or ELF)")) }
    }

    /// Checks that it is a file with something in it.
    pub(crate) fn check_initrd(&self) -> Result<(), ImageError> {
        let metadata = self.regular(&self.open()?, "an initrd")?;
        if metadata.len() > 0 { Ok(()) } else { Err(self.kind("an initrd: it is empty")) }
    }

    /// Checks that it is a raw disk.
    pub(crate) fn check_disk(&self, writable: bool) -> Result<(), ImageError> {
        let file = if writable { self.open_for_writing()? } else { self.open()? };
        let metadata = self.metadata(&file)?;
        if metadata.file_type().is_block_device() {
            return Ok(());
        }
        if !metadata.is_file() {
            return Err(self.kind("a disk: neither a file nor a block device"));
        }
        let mut magic = [0; 4];
        let read = file
            .read_at(&mut magic, 0)
            .map_err(|source| ImageError::Read { file: self.to_string(), source })?;
        if read == magic.len() && [*b"QFI\xfb", *b"KDMV", *b"vhdx", *b"cone"].contains(&magic) {
            return Err(self.kind("a raw disk; convert it: qemu-img convert -O raw"));
        }
        if metadata.len() == 0 || metadata.len() % 512 != 0 {
            return Err(self.kind("a raw disk: its size is not a multiple of 512 bytes"));
        }
        Ok(())
    }

    fn regular(&self, file: &File, expected: &'static str) -> Result<Metadata, ImageError> {
        let metadata = self.metadata(file)?;
        if FileType::is_file(&metadata.file_type()) { Ok(metadata) } else { Err(self.kind(expected)) }
    }

    fn metadata(&self, file: &File) -> Result<Metadata, ImageError> {
        file.metadata().map_err(|source| ImageError::Read { file: self.to_string(), source })
    }

    fn kind(&self, expected: &'static str) -> ImageError {
        ImageError::Kind { file: self.to_string(), expected }
    }
}

impl std::fmt::Display for Located {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.root {
            Some(root) => write!(f, "{} in {}", self.path.display(), root.display()),
            None => write!(f, "{}", self.path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// An images' directory with `debian:12` in it.
    fn images() -> (tempfile::TempDir, ImageRef) {
        let directory = tempfile::tempdir().unwrap();
        let text = "
apiVersion: kubevirt.io/v1
kind: VirtualMachineInstance
metadata: {name: a}
spec:
  domain:
    memory: {guest: 64Mi}
    firmware: {kernelBoot: {container: {image: 'debian:12', kernelPath: /k}}}
    devices: {autoattachPodInterface: false}
";
        let document = vm_api::yaml::documents(text).unwrap().remove(0);
        let image = vm_api::manifest::parse(document).unwrap().vm.kernel.unwrap().image;
        fs::create_dir_all(directory.path().join("debian:12/disk")).unwrap();
        (directory, image)
    }

    #[test]
    fn an_image_cannot_point_outside_itself() {
        let (directory, image) = images();
        let root = directory.path().join("debian:12");
        fs::write(directory.path().join("secret"), "outside").unwrap();
        fs::write(root.join("secret"), "inside").unwrap();
        symlink("/secret", root.join("absolute")).unwrap();
        symlink("../../secret", root.join("relative")).unwrap();
        for name in ["/absolute", "/relative"] {
            let file = Located::in_image(Some(directory.path()), &image, name).unwrap().open().unwrap();
            assert_eq!(io::read_to_string(file).unwrap(), "inside");
        }
    }

    #[test]
    fn an_images_disk_is_the_only_one_there() {
        let (directory, image) = images();
        let images = Some(directory.path());
        assert!(matches!(
            Located::disk_of_image(images, &image),
            Err(ImageError::NotOneDisk { count: 0, .. })
        ));
        let disk = directory.path().join("debian:12/disk/a.img");
        fs::write(&disk, [0; 1024]).unwrap();
        Located::disk_of_image(images, &image).unwrap().check_disk(true).unwrap();
        fs::write(disk.with_extension("qcow2"), "x").unwrap();
        assert!(matches!(
            Located::disk_of_image(images, &image),
            Err(ImageError::NotOneDisk { count: 2, .. })
        ));
        assert!(matches!(Located::disk_of_image(None, &image), Err(ImageError::NoImages(_))));
    }

    #[test]
    fn garbage_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let located = Located::on_node(&path);
        let message = |result: Result<(), ImageError>| result.unwrap_err().to_string();
        assert!(message(located.check_kernel()).contains("cannot open"));
        fs::write(&path, "").unwrap();
        assert!(message(located.check_initrd()).contains("it is empty"));
        fs::write(&path, [0; 1000]).unwrap();
        assert!(message(located.check_kernel()).ends_with("is not a kernel (bzImage or ELF)"));
        assert!(message(located.check_disk(false)).contains("not a multiple of 512"));
        fs::write(&path, [b"QFI\xfb", &[0; 508][..]].concat()).unwrap();
        assert!(message(located.check_disk(false)).contains("qemu-img convert"));
        let here = Located::on_node(directory.path());
        assert!(message(here.check_kernel()).contains("is not a kernel"));
        assert!(message(here.check_disk(false)).contains("neither a file nor a block device"));
    }
}
