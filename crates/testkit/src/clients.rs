//! Client packages of agents, with which tests run the examples of the documents.

use std::path::Path;
use std::process::{Command, Stdio};

/// Debian's and Ubuntu's Python, which finds the packages of the distribution. Another one, first on the path, does not.
pub const PYTHON: &str = "/usr/bin/python3";

/// The package with pika, a client of RabbitMQ.
const PIKA: &str = "python3-pika";

/// The packages of Debian and Ubuntu that are missing on this machine.
#[must_use]
pub fn missing_packages() -> Vec<&'static str> {
    let imports = || {
        let mut python = Command::new(PYTHON);
        python.args(["-c", "import pika"]).stdin(Stdio::null()).stderr(Stdio::null());
        python.status().is_ok_and(|status| status.success())
    };
    if Path::new(PYTHON).exists() && imports() { Vec::new() } else { vec![PIKA] }
}
