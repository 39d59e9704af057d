//! The commands, one file each.

pub(crate) mod conversation_list;
pub(crate) mod conversation_show;
pub(crate) mod dead_letters;
mod dead_letters_discard;
mod dead_letters_edit;
mod dead_letters_export;
pub(crate) mod dead_letters_list;
mod dead_letters_replay;
mod dead_letters_restore;
mod dead_letters_selection;
mod dead_letters_show;
pub(crate) mod lint;
pub(crate) mod publish;
pub(crate) mod queues;
pub(crate) mod setup;
pub(crate) mod trace;
pub(crate) mod verify;
