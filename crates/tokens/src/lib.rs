//! Counts the tokens of a text for a model by byte-pair encoding. Pure functions.
//!
//! Counting takes about a second for 20 MB on one core, so it is not part of a save: the first read
//! or the close counts.
//!
//! # Which counts are exact
//!
//! Exact for the text of OpenAI's models: `o200k_base` (gpt-4o, gpt-4.1, gpt-4.5, gpt-5,
//! chatgpt-4o, o1, o3, o4) and `cl100k_base` (gpt-4, gpt-3.5, the text-embedding models). Every
//! other model has an encoding that is not public or not included here; its count is an *estimate*
//! by the encoding that [`Encoding::for_model`] returns. A count is of the text alone: the caller
//! adds the tokens that a provider adds to each message.
//!
//! Text that looks like a special token (`<|endoftext|>`) is counted as plain text: in a
//! conversation it is content, not a control token.

mod encoding;
mod models;

pub use encoding::{Encoding, Exactness, count, warm};
