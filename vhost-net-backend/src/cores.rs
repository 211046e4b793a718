//! Lists of CPUs as the kernel writes them: `0-3,8`.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity};

/// CPUs to run workers on, in order, at least one, each once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

/// A list of CPUs is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("core list {0:?}: write numbers and ranges up to 4095, such as 0-3,8")]
pub struct CoresError(String);

/// A CPU cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AllowedError {
    /// The kernel does not tell which can.
    #[error("which CPUs this process may run on")]
    Unknown(#[source] io::Error),
    /// It is not there, or not for this process.
    #[error("core list {cores}: this process may not run on CPU {core}, only on {allowed}")]
    Forbidden {
        /// As it was given.
        cores: Cores,
        /// The first of it that cannot be had.
        core: usize,
        /// What can be had.
        allowed: Cores,
    },
}

const MAX_CORE: usize = 4095;

impl Cores {
    /// Refuses CPUs that this process may not run on: those that are not there, or are kept from it (taskset, a cgroup).
    ///
    /// # Errors
    /// Names the first, and those that are allowed.
    pub fn check(&self) -> Result<(), AllowedError> {
        let set = sched_getaffinity(None).map_err(|errno| AllowedError::Unknown(errno.into()))?;
        let is_allowed = |core: &usize| *core < CpuSet::MAX_CPU && set.is_set(*core);
        let Some(&core) = self.0.iter().find(|core| !is_allowed(core)) else { return Ok(()) };
        let allowed = Self((0..CpuSet::MAX_CPU).filter(is_allowed).collect());
        Err(AllowedError::Forbidden { cores: self.clone(), core, allowed })
    }
}

impl Display for Cores {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ranges = self.0.chunk_by(|one, next| one + 1 == *next);
        for (position, range) in ranges.enumerate() {
            let comma = if position == 0 { "" } else { "," };
            match range {
                [first, .., last] => write!(f, "{comma}{first}-{last}")?,
                [core] => write!(f, "{comma}{core}")?,
                [] => {}
            }
        }
        Ok(())
    }
}

impl FromStr for Cores {
    type Err = CoresError;

    fn from_str(text: &str) -> Result<Self, CoresError> {
        let wrong = || CoresError(text.to_owned());
        let number =
            |text: &str| text.parse::<usize>().ok().filter(|core| *core <= MAX_CORE).ok_or_else(wrong);
        let mut cores = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(wrong());
            }
            for core in first..=last {
                if !cores.contains(&core) {
                    cores.push(core);
                }
            }
        }
        Ok(Self(cores))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_the_kernel_writes_them() {
        assert_eq!("0-2,5".parse(), Ok(Cores(vec![0, 1, 2, 5])));
        assert_eq!("3,0-4,3".parse(), Ok(Cores(vec![3, 0, 1, 2, 4])), "a worker each");
        for wrong in ["", "a", "3-1", "1,", "0-99999", "-1"] {
            assert_eq!(wrong.parse::<Cores>(), Err(CoresError(wrong.to_owned())));
        }
    }

    #[test]
    fn lists_are_written_as_the_kernel_writes_them() {
        for list in ["0", "0-2,5", "3,0-2,4", "7-8"] {
            assert_eq!(list.parse::<Cores>().map(|cores| cores.to_string()), Ok(list.to_owned()));
        }
    }

    #[test]
    fn a_cpu_that_cannot_be_had_is_named() {
        let set = sched_getaffinity(None).unwrap();
        let allowed = Cores((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect());
        allowed.check().unwrap();
        let refused = Cores(vec![allowed.0[0], MAX_CORE]).check().unwrap_err().to_string();
        let expected = format!(
            "core list {},{MAX_CORE}: this process may not run on CPU {MAX_CORE}, only on {allowed}",
            allowed.0[0]
        );
        assert_eq!(refused, expected);
    }
}
