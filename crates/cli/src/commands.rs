//! The commands, one file each.

pub(crate) mod audit_list;
pub(crate) mod audit_verify;
pub(crate) mod conversation_list;
pub(crate) mod conversation_show;
pub(crate) mod dead_letters_discard;
pub(crate) mod dead_letters_edit;
pub(crate) mod dead_letters_export;
pub(crate) mod dead_letters_list;
pub(crate) mod dead_letters_replay;
pub(crate) mod dead_letters_restore;
mod dead_letters_selection;
pub(crate) mod dead_letters_show;
pub(crate) mod keys_create;
pub(crate) mod keys_list;
pub(crate) mod keys_revoke;
pub(crate) mod keys_rotate;
pub(crate) mod lint;
pub(crate) mod publish;
pub(crate) mod queues;
pub(crate) mod setup;
pub(crate) mod sync;
pub(crate) mod trace;
pub(crate) mod verify;
