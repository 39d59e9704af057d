//! The commands, a file each.

pub(crate) mod conversation_list;
pub(crate) mod conversation_show;
pub(crate) mod dead_letters_list;
pub(crate) mod dead_letters_show;
pub(crate) mod lint;
pub(crate) mod publish;
pub(crate) mod queues;
pub(crate) mod setup;
pub(crate) mod suggestion;
pub(crate) mod verify;
pub(crate) mod where_is;
