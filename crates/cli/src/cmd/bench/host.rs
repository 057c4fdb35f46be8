//! The machine: what it is, whether it is quiet, how fast its memory is.

use std::sync::Barrier;
use std::time::Instant;

use sysinfo::{CpuRefreshKind, MINIMUM_CPU_UPDATE_INTERVAL, MemoryRefreshKind, RefreshKind, System};

use super::report::Host;

/// Describes the machine, in a fraction of a second.
pub(super) fn describe() -> Host {
    let wanted = RefreshKind::nothing()
        .with_cpu(CpuRefreshKind::nothing().with_cpu_usage())
        .with_memory(MemoryRefreshKind::nothing().with_ram());
    let mut system = System::new_with_specifics(wanted);
    // Usage is what happened between two readings.
    std::thread::sleep(MINIMUM_CPU_UPDATE_INTERVAL);
    system.refresh_cpu_usage();
    let cpu = system.cpus().first().map(|c| c.brand().trim()).filter(|b| !b.is_empty());
    Host {
        cpu: cpu.unwrap_or(std::env::consts::ARCH).to_owned(),
        processors: processors(),
        memory_bytes: system.total_memory(),
        os: System::long_os_version().unwrap_or_else(|| std::env::consts::OS.to_owned()),
        date: time::OffsetDateTime::now_utc().date().to_string(),
        busy_before: f64::from(system.global_cpu_usage().round()) / 100.0,
    }
}

/// Processors that this process may use.
pub(super) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// Bytes of memory that programs can still take.
pub(super) fn available_memory() -> u64 {
    let ram = RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram());
    System::new_with_specifics(ram).available_memory()
}

/// The greatest resident memory that a process had, where the system tells (Linux). `None` for this process.
pub(super) fn peak_memory(process: Option<u32>) -> Option<u64> {
    let process = process.map_or_else(|| "self".to_owned(), |id| id.to_string());
    kilobytes(&std::fs::read_to_string(format!("/proc/{process}/status")).ok()?, "VmHWM")
}

/// `Name:   123 kB` in bytes.
fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Bytes read per second by `threads` threads that stream through `bytes` bytes together, `passes` times.
pub(super) fn bandwidth(threads: usize, bytes: usize, passes: usize) -> f64 {
    let (threads, passes) = (threads.max(1), passes.max(1));
    let part = (bytes / threads).max(1);
    let barrier = Barrier::new(threads);
    let scan = || {
        // Each thread touches its own part first, so that it lies in memory of its own node.
        let buffer = vec![1u8; part];
        let mut found = 0usize;
        // One pass to warm up: page tables, clock frequency.
        found += usize::from(memchr::memchr(0, &buffer).is_some());
        barrier.wait();
        let start = Instant::now();
        for _ in 0..passes {
            // A vectorised search for a byte that is not there reads everything and computes next to nothing.
            found += usize::from(memchr::memchr(0, std::hint::black_box(&buffer)).is_some());
        }
        let took = start.elapsed();
        std::hint::black_box(found);
        took
    };
    let slowest = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(scan)).collect();
        running.into_iter().filter_map(|t| t.join().ok()).max().unwrap_or_default()
    });
    (part * threads * passes) as f64 / slowest.as_secs_f64().max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_tells_what_it_has() {
        assert_eq!(kilobytes("VmPeak:\t  8 kB\nVmHWM:\t   12 kB\n", "VmHWM"), Some(12 << 10));
        assert_eq!(kilobytes("VmHWM:\t twelve kB", "VmHWM"), None);
        let host = describe();
        assert!(
            host.processors > 0 && host.memory_bytes > available_memory() && (0.0..=1.0).contains(&host.busy_before)
        );
    }

    #[test]
    fn reading_takes_time() {
        let rate = bandwidth(2, 1 << 20, 2);
        assert!(rate.is_finite() && rate > 0.0);
    }
}
