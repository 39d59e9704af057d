//! The addresses of a server that may have several nodes.

use service::settings::ServerUrl;

/// URLs with their secrets, separated by commas, for a client.
pub(crate) fn joined(urls: &[ServerUrl]) -> String {
    urls.iter().map(ServerUrl::expose).collect::<Vec<_>>().join(",")
}

/// URLs without their secrets, separated by commas, for a message.
pub(crate) fn without_secrets(urls: &[ServerUrl]) -> String {
    urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
