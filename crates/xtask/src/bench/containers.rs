//! What `docker-compose.yml` sets for the containers of the processes. Read line by line: this crate has no parser of
//! YAML.

use anyhow::{Context, Result};

/// The container of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Container {
    /// Its memory limit in MiB.
    pub(crate) memory: u64,
    /// The settings of the process.
    pub(crate) settings: Vec<(String, String)>,
}

impl Container {
    /// The container of a service in a compose file.
    ///
    /// # Errors
    /// There is no such service, or it has no memory limit in MiB.
    pub(crate) fn of(service: &str, compose: &str) -> Result<Self> {
        let beginning = format!("  {service}:");
        let is_next = |line: &&str| !line.starts_with("   ") && !line.is_empty();
        let lines = compose.lines().skip_while(|line| *line != beginning).skip(1);
        let lines: Vec<_> = lines.take_while(|line| !is_next(line)).map(str::trim).collect();
        let value = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name));
        let memory = value("memory: ")
            .and_then(|limit| limit.strip_suffix('M')?.parse().ok())
            .with_context(|| format!("the service {service} has no memory limit in MiB"))?;
        let settings = lines.iter().filter_map(|line| line.split_once(": "));
        let settings = settings.filter(|(name, _)| name.starts_with("VERBATIM_"));
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self { memory, settings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_limit_and_the_settings_of_a_service_are_read() {
        let compose = "services:
  first:
    environment:
      # A comment.
      VERBATIM_MAX_INFLIGHT_BYTES: 16MiB

    deploy:
      resources:
        limits:
          memory: 448M

  # A comment.
  second:
    command: [second]
";
        let settings = vec![("VERBATIM_MAX_INFLIGHT_BYTES".to_owned(), "16MiB".to_owned())];
        let first = Container::of("first", compose).unwrap();
        assert_eq!(first, Container { memory: 448, settings });
        assert!(Container::of("second", compose).is_err());
        assert!(Container::of("third", compose).is_err());
    }
}
