//! The quick-test guest: a Debian kernel with an initramfs that applies a NoCloud seed (`tests/guest`).

use std::env;
use std::path::PathBuf;

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
