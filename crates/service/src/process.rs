//! The version and the identity of this process.

/// The version of the fleet: all crates of this repository share it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The identity of this process among the replicas: `HOST:PID`. In a container the host name is the
/// container's or the pod's. The host is `-` if `/proc/sys/kernel/hostname` (proc(5)) is unreadable.
#[must_use]
pub fn instance() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = Some(host.trim()).filter(|host| !host.is_empty()).unwrap_or("-");
    format!("{host}:{}", std::process::id())
}
