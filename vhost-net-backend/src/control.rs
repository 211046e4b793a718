//! Changing and watching a running daemon, over a Unix socket.
//!
//! One connection carries one request and its answer, each a line of JSON ([`message`]); after the answer to `capture`
//! the frames follow, as a pcap file. [`server`] is the daemon's side, [`client`] the other: the `ctl` commands and the
//! CNI plugin use it. Who may connect may do everything: the socket is its owner's only.

pub mod client;
pub mod message;
pub mod server;

#[cfg(test)]
mod tests;
