//! Lists of CPUs as the kernel writes them: `0-3,8`.

use std::str::FromStr;

/// CPUs to run workers on, in order, at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

/// A list of CPUs is not one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("core list {0:?}: write numbers and ranges up to 4095, such as 0-3,8")]
pub struct CoresError(String);

const MAX_CORE: usize = 4095;

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
            cores.extend(first..=last);
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
        for wrong in ["", "a", "3-1", "1,", "0-99999", "-1"] {
            assert_eq!(wrong.parse::<Cores>(), Err(CoresError(wrong.to_owned())));
        }
    }
}
