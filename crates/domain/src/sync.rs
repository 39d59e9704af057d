//! `conversation.sync_messages`: which messages of a list are stored already, and where the others belong.
//!
//! A caller sends the whole list of a conversation again and again, without ids. So a message is identified by the messages
//! before it in the list: its [computed id](path) is a hash of the one before it and of [what it says](hash). The same list
//! has the same ids everywhere, and a longer list has those of the shorter one at its beginning. Where a list does not go on
//! from what is stored, [`plan`] decides.

pub mod hash;
pub mod names;
pub mod path;
pub mod plan;
