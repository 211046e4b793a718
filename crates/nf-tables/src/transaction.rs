//! Changes that happen all at once or not at all.

use super::message::{Kind, Message};
use super::object::{Chain, Counter, Element, Rule, Set, Table};

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

    /// Makes a set; one that is there is fine.
    pub fn add_set(self, set: &Set) -> Self {
        self.push(Message::set(Kind::NewSet, set))
    }

    /// Removes a set with its elements; one that rules look into is refused.
    pub fn delete_set(self, set: &Set) -> Self {
        self.push(Message::set(Kind::DeleteSet, set))
    }

    /// Puts a key into a set of keys; one that is there is fine.
    pub fn add_key(self, element: &Element<'_>) -> Self {
        self.push(Message::element(Kind::NewElement, element, None, ""))
    }

    /// Has a set lead from a key to a chain or counter of that name; a key that leads elsewhere is refused. `comment` is what
    /// nft(8) shows beside the key, at most 253 bytes.
    pub fn add_element(self, element: &Element<'_>, target: &str, comment: &str) -> Self {
        self.push(Message::element(Kind::NewElement, element, Some(target), comment))
    }

    /// Takes a key out of a set.
    pub fn delete_element(self, element: &Element<'_>) -> Self {
        self.push(Message::element(Kind::DeleteElement, element, None, ""))
    }

    /// Makes a counter; one that is there is fine.
    pub fn add_counter(self, counter: &Counter<'_>, comment: &str) -> Self {
        self.push(Message::counter(Kind::NewObject, counter, comment))
    }

    /// Removes a counter; one that a set leads to is refused.
    pub fn delete_counter(self, counter: &Counter<'_>) -> Self {
        self.push(Message::counter(Kind::DeleteObject, counter, ""))
    }
}
