//! The runtime side: executes a network's chain of plugins for a container, as Multus and podman do.
//!
//! [`Runtime::add`] writes down what it is about to do before it calls the first plugin, so that after a crash at
//! any point [`Runtime::del`] finds the configuration it has to take down. The record is kept until DEL succeeds.

mod cache;
mod file;
mod network;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Map, Value, json};

pub use cache::{CacheError, Cached};
pub use file::NetworkFileError;
pub use network::{NetworkConfigError, NetworkConfigList};

use crate::exec;
pub use crate::exec::ExecError;
use crate::request::{Attachment, Command, VALID_ATTACHMENTS};
use crate::{Error, Success, output};

/// A CNI runtime.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// Directories that hold plugins, in the order they are searched.
    pub plugin_path: Vec<PathBuf>,
    /// Directory of the records of what is attached.
    pub cache: PathBuf,
    /// How long one plugin may take. It is killed then.
    pub timeout: Duration,
}

/// What is handed to the plugins besides the network's own configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Which interface of which container.
    pub attachment: Attachment,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// Values for `runtimeConfig`; a plugin gets those whose capability it declares.
    pub capabilities: Map<String, Value>,
}

/// Why a chain could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A plugin could not be executed, or answered what is no answer.
    #[error("network {network}: plugin {plugin} cannot be run")]
    Exec {
        /// The network.
        network: String,
        /// The plugin's `type`.
        plugin: String,
        /// What happened.
        source: ExecError,
    },
    /// A plugin said no.
    #[error("network {network}: {plugin} {}", command.as_str())]
    Plugin {
        /// The network.
        network: String,
        /// The plugin's `type`.
        plugin: String,
        /// What it was asked.
        command: Command,
        /// Its answer.
        source: Error,
    },
    /// The record could not be kept.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The container has this interface on this network already.
    #[error("network {network}: interface {if_name} of container {container} is attached already")]
    AlreadyAttached {
        /// The network.
        network: String,
        /// The container.
        container: String,
        /// The interface.
        if_name: String,
    },
}

impl Runtime {
    /// Runs ADD along the chain and returns the last plugin's result. If one fails, what those before it made is
    /// taken down again; where that fails too, the record stays, so that a later [`Runtime::del`] can.
    pub fn add(&self, network: &NetworkConfigList, invocation: &Invocation) -> Result<Success, RuntimeError> {
        let attachment = &invocation.attachment;
        for plugin in network.plugins() {
            exec::find(&self.plugin_path, plugin.kind())
                .map_err(|source| exec_error(network, plugin, source))?;
        }
        self.clear_unfinished(network, attachment)?;
        let mut cached = Cached::new(network, invocation);
        cache::write(&self.cache, &cached)?;
        match self.add_chain(network, invocation) {
            Ok(success) => {
                cached.result = Some(success.clone());
                cache::write(&self.cache, &cached)?;
                Ok(success)
            }
            Err(error) => {
                if let Err(undo) = self.del(network.name(), attachment) {
                    tracing::warn!("after a failed ADD: {}", telemetry::chain(&undo));
                }
                Err(error)
            }
        }
    }

    /// An attachment whose ADD never finished is taken down; one that did is in the way.
    fn clear_unfinished(
        &self,
        network: &NetworkConfigList,
        attachment: &Attachment,
    ) -> Result<(), RuntimeError> {
        match cache::read(&self.cache, network.name(), attachment)? {
            None => Ok(()),
            Some(unfinished) if unfinished.result.is_none() => self.del_cached(&unfinished),
            Some(_) => Err(RuntimeError::AlreadyAttached {
                network: network.name().to_owned(),
                container: attachment.container.to_string(),
                if_name: attachment.if_name.to_string(),
            }),
        }
    }

    fn add_chain(
        &self,
        network: &NetworkConfigList,
        invocation: &Invocation,
    ) -> Result<Success, RuntimeError> {
        let mut previous = None;
        for plugin in network.plugins() {
            let answer = self.call(Command::Add, network, plugin, invocation, previous.as_ref())?;
            let success = Success::read(&answer)
                .map_err(|source| exec_error(network, plugin, ExecError::Answer(source)))?;
            previous = Some(success);
        }
        Ok(previous.unwrap_or_default())
    }

    /// Runs DEL along the chain, last plugin first, with the configuration and result recorded at ADD. All plugins
    /// are asked even if one fails; the first failure is returned and the record kept. Unknown attachments are fine.
    pub fn del(&self, network: &str, attachment: &Attachment) -> Result<(), RuntimeError> {
        let Some(cached) = cache::read(&self.cache, network, attachment)? else { return Ok(()) };
        self.del_cached(&cached)
    }

    /// As [`Runtime::del`], for a record from [`Runtime::cached`].
    pub fn del_cached(&self, cached: &Cached) -> Result<(), RuntimeError> {
        let mut first = None;
        for plugin in cached.network.plugins().iter().rev() {
            let called =
                self.call(Command::Del, &cached.network, plugin, &cached.invocation, cached.result.as_ref());
            if let Err(error) = called {
                tracing::warn!("{}", telemetry::chain(&error));
                first.get_or_insert(error);
            }
        }
        match first {
            Some(error) => Err(error),
            None => Ok(cache::remove(&self.cache, cached)?),
        }
    }

    /// Runs CHECK along the chain with the result recorded at ADD.
    pub fn check(&self, network: &str, attachment: &Attachment) -> Result<(), RuntimeError> {
        let Some(cached) = cache::read(&self.cache, network, attachment)? else {
            return Err(CacheError::NotAttached {
                network: network.to_owned(),
                container: attachment.container.to_string(),
            }
            .into());
        };
        if cached.network.check_disabled() || cached.network.version() < Command::Check.since() {
            return Ok(());
        }
        for plugin in cached.network.plugins() {
            self.call(Command::Check, &cached.network, plugin, &cached.invocation, cached.result.as_ref())?;
        }
        Ok(())
    }

    /// Asks every plugin of `network` whether an ADD could work now. Networks of versions before 1.1.0 cannot say.
    pub fn status(&self, network: &NetworkConfigList) -> Result<(), RuntimeError> {
        if network.version() < Command::Status.since() {
            return Ok(());
        }
        for plugin in network.plugins() {
            self.call_whole(Command::Status, network, plugin, None)?;
        }
        Ok(())
    }

    /// Has every plugin of `network` remove what belongs to none of `valid`. All are asked even if one fails; the
    /// first failure is returned. Networks of versions before 1.1.0 cannot, and those with `disableGC` shall not.
    pub fn gc(&self, network: &NetworkConfigList, valid: &[Attachment]) -> Result<(), RuntimeError> {
        if network.version() < Command::Gc.since() || network.gc_disabled() {
            return Ok(());
        }
        let valid: Vec<_> = valid
            .iter()
            .map(|one| json!({"containerID": one.container.as_str(), "ifname": one.if_name.as_str()}))
            .collect();
        let mut first = None;
        for plugin in network.plugins() {
            if let Err(error) = self.call_whole(Command::Gc, network, plugin, Some(&valid)) {
                tracing::warn!("{}", telemetry::chain(&error));
                first.get_or_insert(error);
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// A call that is about the network as a whole, not about an attachment.
    fn call_whole(
        &self,
        command: Command,
        network: &NetworkConfigList,
        plugin: &network::PluginConfig,
        valid: Option<&[Value]>,
    ) -> Result<(), RuntimeError> {
        let mut config = plugin.for_call(network, &Map::new(), None);
        if let Some(valid) = valid {
            config.insert(VALID_ATTACHMENTS.to_owned(), valid.into());
        }
        let call = exec::Call {
            command,
            attachment: None,
            args: &[],
            path: &self.plugin_path,
            timeout: self.timeout,
        };
        run(&call, network, plugin, &Value::Object(config)).map(drop)
    }

    /// Everything attached according to the records.
    pub fn cached(&self) -> Result<Vec<Cached>, RuntimeError> {
        Ok(cache::all(&self.cache)?)
    }

    fn call(
        &self,
        command: Command,
        network: &NetworkConfigList,
        plugin: &network::PluginConfig,
        invocation: &Invocation,
        previous: Option<&Success>,
    ) -> Result<Vec<u8>, RuntimeError> {
        let previous = previous.map(|success| output::success(success, network.version())).transpose();
        let previous = previous.map_err(|source| refusal(network, plugin, command, source))?;
        let stdin = Value::Object(plugin.for_call(network, &invocation.capabilities, previous));
        let call = exec::Call {
            command,
            attachment: Some(&invocation.attachment),
            args: &invocation.args,
            path: &self.plugin_path,
            timeout: self.timeout,
        };
        run(&call, network, plugin, &stdin)
    }
}

fn run(
    call: &exec::Call<'_>,
    network: &NetworkConfigList,
    plugin: &network::PluginConfig,
    stdin: &Value,
) -> Result<Vec<u8>, RuntimeError> {
    exec::call(call, plugin.kind(), stdin.to_string().as_bytes()).map_err(|error| match error {
        ExecError::Plugin(source) => refusal(network, plugin, call.command, source),
        source => exec_error(network, plugin, source),
    })
}

fn refusal(
    network: &NetworkConfigList,
    plugin: &network::PluginConfig,
    command: Command,
    source: Error,
) -> RuntimeError {
    RuntimeError::Plugin {
        network: network.name().to_owned(),
        plugin: plugin.kind().to_owned(),
        command,
        source,
    }
}

fn exec_error(
    network: &NetworkConfigList,
    plugin: &network::PluginConfig,
    source: ExecError,
) -> RuntimeError {
    RuntimeError::Exec { network: network.name().to_owned(), plugin: plugin.kind().to_owned(), source }
}
