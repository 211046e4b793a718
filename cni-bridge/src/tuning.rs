//! `cnv-tuning`: sets what the plugin before it in the chain leaves alone: sysctls of the pod's namespace, and address,
//! MTU, queue length, promiscuous and all-multicast mode of its interface.
//!
//! What the interface was is written to a file before the first change and restored at DEL. Sysctls are not restored:
//! they go with the pod's namespace. An address that changes here changes in the spoof check that `cnv-bridge` made
//! for the same port, and in the result.

mod apply;
mod config;
mod error;
mod saved;
mod sysctl;

use cni::{Code, Error, Request, Success};

use config::Config;
use error::TuningError;

use crate::journal::Journal;

/// Reads a request's configuration.
pub(crate) fn read(request: &Request) -> Result<(), Error> {
    Config::try_from(request).map(drop)
}

/// The plugin.
#[derive(Debug, Clone, Copy, Default)]
pub struct CnvTuning;

impl cni::Plugin for CnvTuning {
    fn add(&self, request: &Request) -> Result<Success, Error> {
        let config = Config::try_from(request)?;
        let previous = request.prev_result.clone().ok_or_else(|| {
            Error::new(Code::InvalidConfig, "prevResult is missing")
                .details("cnv-tuning comes second in a chain")
        })?;
        Ok(apply::add(&config, &request.network, request.attachment()?, previous)?)
    }

    fn del(&self, request: &Request) -> Result<(), Error> {
        Ok(apply::del(&config::data_dir(request), request.attachment()?)?)
    }

    fn check(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        Ok(apply::check(&config, request.attachment()?)?)
    }

    fn status(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        sysctl::check_allowlist(&config.sysctls)?;
        Ok(Journal::in_directory(&config.data_dir).try_out().map_err(TuningError::Journal)?)
    }

    fn gc(&self, request: &Request) -> Result<(), Error> {
        let config = Config::try_from(request)?;
        let journal = Journal::in_directory(&config.data_dir);
        Ok(journal.gc(&request.network, &request.valid_attachments()?).map_err(TuningError::Journal)?)
    }
}
