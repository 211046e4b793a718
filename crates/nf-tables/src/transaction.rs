//! Changes that happen all at once or not at all.

use super::message::{Kind, Message};
use super::object::{Chain, Rule, Table, VerdictMap};

/// A list of changes, in order.
#[derive(Debug, Default)]
pub struct Transaction {
    pub(super) messages: Vec<Message>,
}

impl Transaction {
    fn push(mut self, message: Message) -> Self {
        self.messages.push(message);
        self
    }

    /// Makes a table; one that is there is fine, and in force from then on.
    pub fn add_table(self, table: Table<'_>) -> Self {
        self.push(Message::table(Kind::NewTable, table))
    }

    /// Makes a table; one that is there is refused.
    pub fn create_table(self, table: Table<'_>) -> Self {
        self.push(Message::table(Kind::NewTableOnly, table))
    }

    /// Removes a table with all that is in it.
    pub fn delete_table(self, table: Table<'_>) -> Self {
        self.push(Message::table(Kind::DeleteTable, table))
    }

    /// Removes a table; one that still holds something is refused.
    pub fn delete_empty_table(self, table: Table<'_>) -> Self {
        self.push(Message::table(Kind::DeleteEmptyTable, table))
    }

    /// Makes a chain; one that is there is fine.
    pub fn add_chain(self, chain: &Chain<'_>) -> Self {
        self.push(Message::chain(Kind::NewChain, chain))
    }

    /// Removes a chain and its rules.
    pub fn delete_chain(self, chain: &Chain<'_>) -> Self {
        self.push(Message::chain(Kind::DeleteChain, chain))
    }

    /// Removes all rules of a chain.
    pub fn flush_chain(self, chain: &Chain<'_>) -> Self {
        self.push(Message::flush(chain))
    }

    /// Appends a rule to a chain.
    pub fn add_rule(self, chain: &Chain<'_>, rule: &Rule<'_>) -> Self {
        self.push(Message::rule(chain, rule))
    }

    /// Makes a map; one that is there is fine.
    pub fn add_map(self, map: &VerdictMap) -> Self {
        self.push(Message::map(Kind::NewMap, map))
    }

    /// Removes a map; one with elements is refused.
    pub fn delete_empty_map(self, map: &VerdictMap) -> Self {
        self.push(Message::map(Kind::DeleteEmptyMap, map))
    }

    /// Has `map` send `key` to the chain `target`; a key that goes elsewhere is refused.
    pub fn add_element(self, map: &VerdictMap, key: &[u8], target: &str) -> Self {
        self.push(Message::element(Kind::NewElement, map, key, Some(target)))
    }

    /// Takes a key from `map`.
    pub fn delete_element(self, map: &VerdictMap, key: &[u8]) -> Self {
        self.push(Message::element(Kind::DeleteElement, map, key, None))
    }
}
