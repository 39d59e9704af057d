//! CPU time and memory of processes, from `/proc`.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// The unit of CPU time in `/proc`: a hundredth of a second on all supported architectures (`proc(5)`,
/// `sysconf(_SC_CLK_TCK)`).
const TICK: Duration = Duration::from_millis(10);

/// The CPU time of all threads of a process.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    Ok(TICK * Stat::of(pid)?.ticks)
}

/// The CPU time of a process and of all its descendants, including ended ones.
pub(crate) fn cpu_of_tree(root: u32) -> Result<Duration> {
    let mut children: HashMap<u32, Vec<Stat>> = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        // The time of a process that ends meanwhile is counted with its parent.
        if let Some(stat) = pid.and_then(|pid| Stat::of(pid).ok()) {
            children.entry(stat.parent).or_default().push(stat);
        }
    }
    let mut ticks = 0;
    let mut open = vec![Stat::of(root)?];
    while let Some(stat) = open.pop() {
        ticks += stat.ticks + stat.ticks_of_ended_children;
        open.extend(children.remove(&stat.pid).into_iter().flatten());
    }
    Ok(TICK * ticks)
}

/// The peak resident memory of a process so far, in bytes.
pub(crate) fn peak_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .map(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>());
    Ok(kib.context("/proc/PID/status has no VmHWM")?? * 1024)
}

#[derive(Debug)]
struct Stat {
    pid: u32,
    parent: u32,
    ticks: u32,
    ticks_of_ended_children: u32,
}

impl Stat {
    fn of(pid: u32) -> Result<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is the program's name, which may contain spaces and brackets; the last `)` ends it.
        let (_, rest) = text.rsplit_once(')').context("/proc/PID/stat has no program name")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // Numbered as in proc(5); the first two fields are cut off.
        let field = |number: usize| {
            fields
                .get(number - 3)
                .and_then(|text| text.parse::<u32>().ok())
                .context("/proc/PID/stat is too short")
        };
        Ok(Self {
            pid,
            parent: field(4)?,
            ticks: field(14)? + field(15)?,
            ticks_of_ended_children: field(16)? + field(17)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_used_memory_and_time() {
        let pid = std::process::id();
        while cpu(pid).unwrap() < TICK {
            std::hint::spin_loop();
        }
        assert!(cpu_of_tree(pid).unwrap() >= cpu(pid).unwrap().min(TICK));
        assert!(peak_memory(pid).unwrap() > 1 << 20);
    }
}
