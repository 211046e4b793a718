//! nf_tables, spoken straight to the kernel: transactions, and reading rules and elements back.
//!
//! Why not by way of nft(8): before it sends anything, that program reads back what all of the node's tables hold,
//! so one attachment would cost 2 ms on an empty node and 0.3 s and more next to a thousand tables of others
//! (`docs/decisions.md` has the measurement). Attaching must not depend on how busy the node is.
//!
//! Only what the plugins need is here. Layouts are those of `linux/netfilter/nf_tables.h`; attributes are in
//! network byte order, headers in the machine's.

mod attribute;
mod expression;
mod message;
mod object;
mod reply;
mod request;
mod transaction;

use std::os::fd::{AsRawFd, OwnedFd};
use std::{fmt, io};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};

use attribute::{Attributes, Writer};
pub use expression::{Base, Compare, Conntrack, Expression, Field, Meta, Translated, compared, same};
pub use object::{Chain, Counter, Element, Family, Holds, Hook, Part, Place, Rule, Set, Table};
pub use reply::{FoundChain, FoundCounter, FoundElement, FoundRule, FoundTable};
pub use transaction::Transaction;

use message::Message;
use reply::Reply;

/// Bytes that any socket can send at once.
const PLAIN_BATCH: usize = 65536;

/// What a look-up asks for.
const LIST: &str = "list";

/// How often something is listed whose list others keep changing. A list takes less time than most transactions.
const MOST_LISTS: u32 = 100;

/// Why a transaction or a look-up failed.
#[derive(Debug, thiserror::Error)]
pub enum NfTablesError {
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
    /// An answer that ends too early.
    #[error("nf_tables did not answer")]
    NoAnswer,
    /// No list was of one state.
    #[error("others change nf_tables too often to list {object}, tried {MOST_LISTS} times")]
    Changing {
        /// Of what.
        object: String,
    },
}

impl NfTablesError {
    fn is(&self, errno: nix::Error) -> bool {
        matches!(self, Self::Refused { source, .. } if source.raw_os_error() == Some(errno as i32))
    }

    /// True if the object is not there.
    pub fn is_not_found(&self) -> bool {
        self.is(nix::Error::ENOENT)
    }

    /// True if this kernel has no nf_tables, so that there can be nothing of it: no netfilter to talk to at all, or nobody who
    /// knows a request that is always the same.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Socket(source) => source.raw_os_error() == Some(nix::Error::EPROTONOSUPPORT as i32),
            Self::Refused { verb, .. } => *verb == LIST && self.is(nix::Error::EINVAL),
            Self::Answer | Self::NoAnswer | Self::Changing { .. } => false,
        }
    }

    /// True if the kernel refused because of `object`.
    pub fn is_about(&self, object: &impl fmt::Display) -> bool {
        matches!(self, Self::Refused { object: refused, .. } if *refused == object.to_string())
    }

    /// True if the object is there already, and not as wanted.
    pub fn already_exists(&self) -> bool {
        self.is(nix::Error::EEXIST) || self.is(nix::Error::EBUSY)
    }

    /// True if others still use the object.
    pub fn is_in_use(&self) -> bool {
        self.is(nix::Error::EBUSY)
    }
}

/// A socket to nf_tables of the namespace it was opened in.
#[derive(Debug)]
pub struct NfTables {
    socket: OwnedFd,
}

impl NfTables {
    /// A socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, NfTablesError> {
        let open = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket =
                socket(AddressFamily::Netlink, SockType::Raw, flags, Some(SockProtocol::NetlinkNetFilter))?;
            Ok(Self { socket })
        };
        open().map_err(|errno: nix::Error| NfTablesError::Socket(errno.into()))
    }

    /// Carries out `transaction`.
    pub fn commit(&self, transaction: &Transaction) -> Result<(), NfTablesError> {
        self.transact(transaction, true)
    }

    /// Has the kernel look at `transaction` without doing it.
    pub fn try_out(&self, transaction: &Transaction) -> Result<(), NfTablesError> {
        self.transact(transaction, false)
    }

    fn transact(&self, transaction: &Transaction, is_meant: bool) -> Result<(), NfTablesError> {
        let messages = &transaction.messages;
        let batch = request::batch(messages, is_meant);
        if batch.len() > PLAIN_BATCH {
            // The kernel takes a batch as a whole or not at all; bookkeeping is part of the buffer.
            setsockopt(&self.socket, sockopt::SndBufForce, &(2 * batch.len()))
                .map_err(|errno| NfTablesError::Socket(errno.into()))?;
        }
        self.send(&batch)?;
        // One answer for each message that is refused, and for the last; one for the batch (sequence number 0) if it is
        // refused as a whole, and then there may be no other.
        let mut refused: Option<NfTablesError> = None;
        let mut is_answered = messages.is_empty();
        while let Some(replies) = self.receive()? {
            for reply in replies {
                let Reply::Answer { sequence, errno } = reply? else { return Err(NfTablesError::Answer) };
                is_answered |= usize::try_from(sequence).is_ok_and(|sequence| sequence == messages.len());
                if errno != 0 {
                    let error = || refusal(messages, sequence, errno);
                    refused.get_or_insert_with(error);
                }
            }
        }
        match refused {
            Some(error) => Err(error),
            None if is_answered => Ok(()),
            None => Err(NfTablesError::NoAnswer),
        }
    }

    /// The chains of `table`; none if there is no such table. Its cost grows with all the chains of the node.
    pub fn chains(&self, table: Table<'_>) -> Result<Vec<FoundChain>, NfTablesError> {
        let found = self.list(&request::dump_chains(table.family), &table)?;
        let chain = |reply| if let Reply::Chain(chain) = reply { Some(chain) } else { None };
        Ok(found.into_iter().filter_map(chain).filter(|chain| chain.table == table.name).collect())
    }

    /// The rules of `chain`; none if there is no such chain.
    pub fn rules(&self, chain: &Chain<'_>) -> Result<Vec<FoundRule>, NfTablesError> {
        self.list_rules(&request::dump_chain(chain), chain)
    }

    /// The chains of all tables of a family whose rules have a comment, with that comment. Its cost grows with all the
    /// rules of the node: not for ADD or DEL.
    pub fn owned_chains(&self, family: Family) -> Result<Vec<(String, String)>, NfTablesError> {
        let rules = self.list_rules(&request::dump_family(family), &"all rules")?;
        let commented = rules.into_iter().filter(|rule| !rule.comment.is_empty());
        let mut chains: Vec<_> = commented.map(|rule| (rule.chain, rule.comment)).collect();
        chains.dedup();
        Ok(chains)
    }

    fn list_rules(&self, request: &[u8], object: &impl ToString) -> Result<Vec<FoundRule>, NfTablesError> {
        let rule = |reply| if let Reply::Rule(rule) = reply { Some(rule) } else { None };
        Ok(self.list(request, object)?.into_iter().filter_map(rule).collect())
    }

    /// An element with what it leads to; none if its set does not have it, or there is no such set.
    pub fn element(&self, element: &Element<'_>) -> Result<Option<FoundElement>, NfTablesError> {
        let found = self.list_elements(&request::get_element(element), element.set)?;
        Ok(found.into_iter().next())
    }

    /// All elements of `set`. Its cost grows with the set: only where [`NfTables::element`] does not help.
    pub fn elements(&self, set: &Set) -> Result<Vec<FoundElement>, NfTablesError> {
        self.list_elements(&request::dump_elements(set), set)
    }

    fn list_elements(&self, request: &[u8], set: &Set) -> Result<Vec<FoundElement>, NfTablesError> {
        let elements = |reply| if let Reply::Elements(elements) = reply { elements } else { Vec::new() };
        Ok(self.list(request, set)?.into_iter().flat_map(elements).collect())
    }

    /// True if there is a counter of that name in its table.
    pub fn has_counter(&self, counter: &Counter<'_>) -> Result<bool, NfTablesError> {
        Ok(!self.list(&request::get_counter(counter), counter)?.is_empty())
    }

    /// The counters of `table`; none if there is no such table.
    pub fn counters(&self, table: Table<'_>) -> Result<Vec<FoundCounter>, NfTablesError> {
        let counter = |reply| if let Reply::Counter(counter) = reply { Some(counter) } else { None };
        Ok(self.list(&request::dump_counters(table), &table)?.into_iter().filter_map(counter).collect())
    }

    /// `table` itself; none if there is no such table.
    pub fn table(&self, table: Table<'_>) -> Result<Option<FoundTable>, NfTablesError> {
        let found = self.list(&request::get_table(table), &table)?;
        Ok(found
            .into_iter()
            .find_map(|reply| if let Reply::Table(table) = reply { Some(table) } else { None }))
    }

    /// `chain` itself; none if there is no such chain.
    pub fn chain(&self, chain: &Chain<'_>) -> Result<Option<FoundChain>, NfTablesError> {
        let found = self.list(&request::get_chain(chain), chain)?;
        Ok(found
            .into_iter()
            .find_map(|reply| if let Reply::Chain(chain) = reply { Some(chain) } else { None }))
    }

    /// True if packets meet `chain` where [`Transaction::add_chain`] has them enter it: it is there, with that hook, and its
    /// table is not switched off.
    pub fn is_in_force(&self, chain: &Chain<'_>) -> Result<bool, NfTablesError> {
        if self.table(chain.table)?.is_none_or(|table| table.is_dormant) {
            return Ok(false);
        }
        Ok(self.chain(chain)?.is_some_and(|found| found.is(chain)))
    }

    /// After what `first` asks for, and in one with it, removes `table` with these chains and sets; does nothing, and says
    /// so, if it then holds anything else. What of it somebody has removed already is left out.
    pub fn remove_unused(
        &self,
        first: impl Fn() -> Transaction,
        table: Table<'_>,
        chains: &[Chain<'_>],
        sets: &[Set],
    ) -> Result<bool, NfTablesError> {
        let (mut chains, mut sets) = (chains.to_vec(), sets.to_vec());
        loop {
            let mut everything = chains.iter().fold(first(), Transaction::flush_chain);
            everything = chains.iter().fold(everything, Transaction::delete_chain);
            everything = sets.iter().fold(everything, Transaction::delete_set);
            let error = match self.commit(&everything.delete_empty_table(table)) {
                Err(error) if error.is_not_found() => error,
                Err(error) if error.is_in_use() => return Ok(false),
                other => return other.map(|()| true),
            };
            let tried = chains.len() + sets.len();
            chains.retain(|chain| !error.is_about(chain));
            sets.retain(|set| !error.is_about(set));
            if chains.len() + sets.len() == tried {
                // The table is gone, or what comes first.
                return Ok(false);
            }
        }
    }

    /// What `request` finds; nothing if `object` is not there. All of it was there at one moment, if it fits into one part (32
    /// KiB); of a longer list the kernel can leave some out, where a transaction ends between two parts.
    fn list(&self, request: &[u8], object: &impl ToString) -> Result<Vec<Reply>, NfTablesError> {
        for _ in 0..MOST_LISTS {
            if let Some(found) = self.list_once(request, object)? {
                return Ok(found);
            }
        }
        Err(NfTablesError::Changing { object: object.to_string() })
    }

    /// What `request` finds, up to the end of the answer; none if a transaction came between its parts.
    fn list_once(&self, request: &[u8], object: &impl ToString) -> Result<Option<Vec<Reply>>, NfTablesError> {
        self.send(request)?;
        let (mut found, mut is_whole) = (Vec::new(), true);
        while let Some(replies) = self.receive()? {
            for reply in replies {
                match reply? {
                    Reply::Done { is_torn } => return Ok((is_whole && !is_torn).then_some(found)),
                    Reply::Answer { errno: 0, .. } => return Ok(Some(found)),
                    Reply::Answer { errno, .. } if errno == nix::Error::ENOENT as i32 => {
                        return Ok(Some(found));
                    }
                    Reply::Answer { errno, .. } => {
                        let source = io::Error::from_raw_os_error(errno);
                        return Err(NfTablesError::Refused {
                            verb: LIST,
                            object: object.to_string(),
                            source,
                        });
                    }
                    Reply::Torn => is_whole = false,
                    reply => found.push(reply),
                }
            }
        }
        Err(NfTablesError::NoAnswer)
    }

    fn send(&self, bytes: &[u8]) -> Result<(), NfTablesError> {
        let kernel = NetlinkAddr::new(0, 0);
        match sendto(self.socket.as_raw_fd(), bytes, &kernel, MsgFlags::empty()) {
            Ok(_) => Ok(()),
            Err(errno) => Err(NfTablesError::Socket(errno.into())),
        }
    }

    /// The next of the kernel's answers; none if there is no more. Waiting is of no use: the kernel answers within the
    /// system call that asks, and goes on with a list within the one that takes what there is of it.
    fn receive(
        &self,
    ) -> Result<Option<impl Iterator<Item = Result<Reply, NfTablesError>> + use<>>, NfTablesError> {
        let mut buffer = vec![0; 65536];
        match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(length) => {
                buffer.truncate(length);
                Ok(Some(reply::replies(buffer)))
            }
            Err(nix::Error::EAGAIN) => Ok(None),
            Err(errno) => Err(NfTablesError::Socket(errno.into())),
        }
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
