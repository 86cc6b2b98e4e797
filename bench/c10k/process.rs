//! CPU time, memory and identity of the server's process, this process and the machine.

use std::fs;

/// Length of a clock tick in `/proc/PID/stat`.
///
/// USER_HZ is 100 on every Linux architecture this builds for (proc(5)).
const CPU_TICK_NS: u64 = 10_000_000;

/// CPU time (user and system) that a process has used, in nanoseconds, with a resolution of 10 ms.
///
/// # Errors
/// One line for the operator if there is no such process.
pub fn cpu_ns(pid: u32) -> Result<u64, String> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(|error| format!("--server-pid {pid}: {path}: {error}"))?;
    cpu_ns_from_stat(&stat).ok_or_else(|| format!("--server-pid {pid}: cannot parse {path}"))
}

/// Fields 14 and 15, counted from the end of the name, which may itself contain blanks and parentheses.
fn cpu_ns_from_stat(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * CPU_TICK_NS)
}

/// Resident memory of a process in bytes; `None` if the kernel does not report it.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// One line that identifies the machine: kernel, processor, cores and memory.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let after_colon = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let cores = core_affinity::get_core_ids().map_or(0, |cores| cores.len());
    let model = after_colon(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown CPU".into());
    let memory = after_colon(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .map_or_else(|| "unknown memory".into(), |kib| format!("{:.1} GiB", kib as f64 / f64::from(1 << 20)));
    let kernel = read("/proc/sys/kernel/osrelease");
    format!("Linux {}, {cores} x {model}, {memory}", kernel.trim())
}

/// This process's command line, quoted so that it can be pasted into a shell.
pub fn command() -> String {
    let plain = |text: &str| {
        !text.is_empty()
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte))
    };
    let quoted = std::env::args().map(|argument| match plain(&argument) {
        true => argument,
        false => format!("'{}'", argument.replace('\'', "'\\''")),
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_parsed_after_any_process_name() {
        let stat = "7 (a) b) R 1 1 1 0 -1 0 0 0 0 0 12 30 0 0 20 0 1 0";
        assert_eq!(cpu_ns_from_stat(stat), Some(420_000_000));
        assert_eq!(cpu_ns_from_stat("7 (a"), None);
    }

    #[test]
    fn figures_of_this_process_are_available() {
        assert!(cpu_ns(std::process::id()).is_ok());
        assert!(resident_bytes(std::process::id()).unwrap() > 0);
        assert!(cpu_ns(u32::MAX).is_err());
        assert!(machine().starts_with("Linux "));
    }
}
