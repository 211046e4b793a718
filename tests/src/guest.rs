//! The quick-test guest: a Debian kernel with an initramfs that applies a NoCloud seed (`tests/guest`).

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use crate::command::{output, run};

/// An ELF kernel of three bytes of code, loaded at 1 MiB and entered there in 64-bit mode: `hlt`, for ever.
pub(crate) const HALT_KERNEL: &[u8] = &halt_kernel();

const fn halt_kernel() -> [u8; 4099] {
    let mut image = [0; 4099];
    // The header: 64-bit, little-endian, executable, x86-64, entered at 0x100000, one program header at 64.
    let head: [(usize, &[u8]); 10] = [
        (0, b"\x7fELF\x02\x01\x01"),
        (16, &[2, 0, 62, 0, 1]),
        (24, &0x10_0000_u64.to_le_bytes()),
        (32, &64_u64.to_le_bytes()),
        (52, &[64, 0, 56, 0, 1]),
        // The program header: load what is at 4096 in the file to 0x100000, readable and executable.
        (64, &[1, 0, 0, 0, 5]),
        (72, &4096_u64.to_le_bytes()),
        (80, &0x10_0000_u64.to_le_bytes()),
        (88, &0x10_0000_u64.to_le_bytes()),
        (4096, &[0xf4, 0xeb, 0xfd]),
    ];
    let mut part = 0;
    while part < head.len() {
        let (at, bytes) = head[part];
        let mut byte = 0;
        while byte < bytes.len() {
            image[at + byte] = bytes[byte];
            byte += 1;
        }
        part += 1;
    }
    // Three bytes in the file and in memory.
    image[96] = 3;
    image[104] = 3;
    // Alignment: a page.
    image[113] = 0x10;
    image
}

/// What a VM boots to become the quick-test guest. It says `guest ready: <hostname>` on its serial console.
#[derive(Debug, Clone)]
pub struct GuestImage {
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

impl GuestImage {
    /// The one in the cache.
    ///
    /// # Panics
    /// If it has not been built (`make node` builds it).
    #[track_caller]
    pub fn get() -> Self {
        Self::of("guest")
    }

    /// The one whose kernel has drivers of real NICs.
    ///
    /// # Panics
    /// As [`GuestImage::get`].
    #[track_caller]
    pub fn with_nic_drivers() -> Self {
        Self::of("guest/nics")
    }

    /// The same with more programs of this machine's, in `folder`.
    ///
    /// # Panics
    /// If one of them is not installed, or the folder cannot be written to.
    #[track_caller]
    pub fn with(self, programs: &[&str], folder: &Path) -> Self {
        let initrd = folder.join("initrd");
        fs::copy(&self.initrd, &initrd).expect("the test's folder is writable");
        let with = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/with");
        let more = output(Command::new(with).args(programs));
        assert!(more.status.success(), "{}", String::from_utf8_lossy(&more.stderr));
        let mut file = fs::File::options().append(true).open(&initrd).expect("it was just made");
        file.write_all(&more.stdout).expect("there is room for it");
        Self { initrd, ..self }
    }

    #[track_caller]
    fn of(folder: &str) -> Self {
        let cache = match (env::var_os("GUESTWIRE_CACHE"), env::var_os("HOME")) {
            (Some(cache), _) => PathBuf::from(cache),
            (None, Some(home)) => PathBuf::from(home).join(".cache/guestwire"),
            (None, None) => panic!("neither GUESTWIRE_CACHE nor HOME is set"),
        };
        let folder = cache.join(folder);
        let image = Self { kernel: folder.join("vmlinuz"), initrd: folder.join("initrd") };
        for file in [&image.kernel, &image.initrd] {
            assert!(file.is_file(), "{} is missing: run tests/guest/build", file.display());
        }
        image
    }
}

/// A NoCloud seed disk with these files, made in `folder`.
///
/// # Panics
/// If mkfs.vfat or mcopy fail.
#[track_caller]
pub fn seed_disk(folder: &Path, files: &[(&str, &str)]) -> PathBuf {
    let disk = folder.join("seed.img");
    run(Command::new("mkfs.vfat").args(["-C", "-n", "CIDATA"]).arg(&disk).arg("1024"));
    for (name, content) in files {
        let file = folder.join(name);
        fs::write(&file, content).expect("the test's own folder can be written to");
        run(Command::new("mcopy").arg("-i").arg(&disk).arg(&file).arg("::"));
    }
    disk
}
