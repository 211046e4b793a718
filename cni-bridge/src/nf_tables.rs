//! nf_tables, spoken straight to the kernel: transactions, and reading one chain's rules back.
//!
//! Why not by way of nft(8): before it sends anything, that program reads back what all of the node's tables hold,
//! so one attachment would cost 2 ms on an empty node and 0.3 s and more next to a thousand tables of others
//! (`docs/decisions.md` has the measurement). Attaching must not depend on how busy the node is.
//!
//! Only what the spoof check needs is here. Layouts are those of `linux/netfilter/nf_tables.h`; attributes are in
//! network byte order, headers in the machine's.

mod attribute;
mod message;

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

pub(crate) use attribute::{Attributes, Writer};
pub(crate) use message::{Chain, Expression, Rule, expressions};

use message::{Kind, Message, Reply};

/// How long the kernel may take to answer. It answers within the system call; this only bounds the wait for an
/// answer that was lost.
const ANSWER_WITHIN_SECONDS: i64 = 10;

/// Why a transaction or a look-up failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NfTablesError {
    /// No socket, or it broke.
    #[error("cannot talk to nf_tables")]
    Socket(#[source] io::Error),
    /// The kernel refused; the transaction as a whole has not happened.
    #[error("nf_tables refused to {verb} {object}")]
    Refused {
        /// What was asked.
        verb: &'static str,
        /// Of what.
        object: String,
        /// The errno.
        source: io::Error,
    },
    /// An answer that does not follow the protocol.
    #[error("nf_tables sent an answer that cannot be read")]
    Answer,
}

impl NfTablesError {
    fn is(&self, errno: nix::Error) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(errno as i32))
    }

    /// True if the object is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        self.is(nix::Error::ENOENT)
    }

    /// True if others still use the object.
    pub(crate) fn is_in_use(&self) -> bool {
        self.is(nix::Error::EBUSY)
    }
}

/// A socket to nf_tables of the namespace it was opened in.
#[derive(Debug)]
pub(crate) struct NfTables {
    socket: OwnedFd,
}

/// Changes that happen all at once or not at all.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    messages: Vec<Message>,
}

impl Transaction {
    /// Makes a table of the netdev family; one that is there is fine.
    pub(crate) fn add_table(mut self, table: &str) -> Self {
        self.messages.push(Message::table(Kind::NewTable, table));
        self
    }

    /// Removes a table unless it still holds something.
    pub(crate) fn delete_empty_table(mut self, table: &str) -> Self {
        self.messages.push(Message::table(Kind::DeleteEmptyTable, table));
        self
    }

    /// Makes a base chain on the ingress of one device; one that is there is fine.
    pub(crate) fn add_chain(mut self, chain: &Chain<'_>) -> Self {
        self.messages.push(Message::chain(Kind::NewChain, chain));
        self
    }

    /// Removes a chain and its rules.
    pub(crate) fn delete_chain(mut self, chain: &Chain<'_>) -> Self {
        self.messages.push(Message::chain(Kind::DeleteChain, chain));
        self
    }

    /// Removes all rules of a chain.
    pub(crate) fn flush_chain(mut self, chain: &Chain<'_>) -> Self {
        self.messages.push(Message::flush(chain));
        self
    }

    /// Appends a rule to a chain.
    pub(crate) fn add_rule(mut self, chain: &Chain<'_>, rule: &Rule<'_>) -> Self {
        self.messages.push(Message::rule(chain, rule));
        self
    }
}

impl NfTables {
    /// A socket in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, NfTablesError> {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket =
                socket(AddressFamily::Netlink, SockType::Raw, flags, Some(SockProtocol::NetlinkNetFilter))?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(ANSWER_WITHIN_SECONDS, 0))?;
            Ok(Self { socket })
        };
        open().map_err(|errno: nix::Error| NfTablesError::Socket(errno.into()))
    }

    /// Carries out `transaction`.
    pub(crate) fn commit(&self, transaction: &Transaction) -> Result<(), NfTablesError> {
        let messages = &transaction.messages;
        self.send(&message::batch(messages))?;
        // One answer for each message; one for the batch (sequence number 0) only if committing fails.
        let mut answered = 0;
        let mut refused: Option<NfTablesError> = None;
        while answered < messages.len() {
            for reply in self.receive()? {
                let Reply::Answer { sequence, errno } = reply? else { return Err(NfTablesError::Answer) };
                answered += usize::from(sequence != message::BATCH);
                if errno != 0 {
                    let error = || refusal(messages, sequence, errno);
                    refused.get_or_insert_with(error);
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// The expressions of each rule of `chain`, as attributes; none if there is no such chain.
    pub(crate) fn rules(&self, chain: &Chain<'_>) -> Result<Vec<Vec<u8>>, NfTablesError> {
        self.send(&message::dump_rules(chain))?;
        let mut rules = Vec::new();
        loop {
            for reply in self.receive()? {
                match reply? {
                    Reply::Rule { expressions } => rules.push(expressions),
                    Reply::Done | Reply::Answer { errno: 0, .. } => return Ok(rules),
                    Reply::Answer { errno, .. } if errno == nix::Error::ENOENT as i32 => {
                        return Ok(Vec::new());
                    }
                    Reply::Answer { errno, .. } => {
                        let source = io::Error::from_raw_os_error(errno);
                        return Err(NfTablesError::Refused {
                            verb: "list",
                            object: chain.to_string(),
                            source,
                        });
                    }
                }
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NfTablesError> {
        let kernel = NetlinkAddr::new(0, 0);
        match sendto(self.socket.as_raw_fd(), bytes, &kernel, MsgFlags::empty()) {
            Ok(_) => Ok(()),
            Err(errno) => Err(NfTablesError::Socket(errno.into())),
        }
    }

    fn receive(&self) -> Result<impl Iterator<Item = Result<Reply, NfTablesError>>, NfTablesError> {
        let mut buffer = vec![0; 65536];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())
            .map_err(|errno| NfTablesError::Socket(errno.into()))?;
        buffer.truncate(length);
        Ok(message::replies(buffer))
    }
}

fn refusal(messages: &[Message], sequence: u32, errno: i32) -> NfTablesError {
    let source = io::Error::from_raw_os_error(errno);
    let refused = usize::try_from(sequence).ok().and_then(|sequence| messages.get(sequence.checked_sub(1)?));
    match refused {
        Some(message) => {
            NfTablesError::Refused { verb: message.verb(), object: message.object().to_owned(), source }
        }
        None => NfTablesError::Refused { verb: "commit", object: "the transaction".to_owned(), source },
    }
}
