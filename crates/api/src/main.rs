//! `conversation-api`: reads, statistics and publishing over HTTP.

fn main() {}
