//! The cores that compute threads should have: physical ones, of the fastest kind. Two hyperthreads of a core share the
//! units that products need, and a slow core makes the others wait at every barrier. Pure functions over what Linux says about
//! its processors; a function that is passed in reads it.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

/// Physical cores of the fastest kind among the processors that a Linux process may run on. `None` if the kernel does not
/// say. Where only slower cores are allowed, these are counted.
///
/// * `status`: the text of `/proc/self/status`, see proc_pid_status(5): the processors allowed by affinity and cpusets.
/// * `read`: the text of a file below `/sys/devices`.
pub(super) fn linux_compute_cores(status: &str, read: impl Fn(&Path) -> Option<String>) -> Option<usize> {
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).and_then(processors)?;
    let fast: BTreeSet<usize> = allowed.intersection(&fastest(&allowed, &read)).copied().collect();
    let counted = if fast.is_empty() { &allowed } else { &fast };
    let mut cores = BTreeSet::new();
    for processor in counted {
        cores.insert(siblings(*processor, &read)?);
    }
    Some(cores.len())
}

/// The processors of the fastest kind. Intel's hybrid machines list them; ARM's kernels give each processor a capacity, of
/// which the fastest have at least half as much as the very fastest.
fn fastest(allowed: &BTreeSet<usize>, read: impl Fn(&Path) -> Option<String>) -> BTreeSet<usize> {
    if let Some(listed) = read(Path::new("/sys/devices/cpu_core/cpus")).and_then(|text| processors(&text)) {
        return listed;
    }
    let capacity = |processor: &usize| -> Option<u64> { read(&of(*processor, "cpu_capacity"))?.trim().parse().ok() };
    let capacities: Vec<(usize, Option<u64>)> =
        allowed.iter().map(|processor| (*processor, capacity(processor))).collect();
    let largest = capacities.iter().filter_map(|(_, capacity)| *capacity).max().unwrap_or(0);
    let is_fast = |capacity: Option<u64>| capacity.is_none_or(|capacity| 2 * capacity >= largest);
    capacities.into_iter().filter(|(_, capacity)| is_fast(*capacity)).map(|(processor, _)| processor).collect()
}

/// The processors of one's core, itself included, as the kernel lists them.
fn siblings(processor: usize, read: impl Fn(&Path) -> Option<String>) -> Option<BTreeSet<usize>> {
    // The second name is the one of kernels before 5.3.
    ["topology/core_cpus_list", "topology/thread_siblings_list"]
        .iter()
        .find_map(|name| read(&of(processor, name)))
        .and_then(|text| processors(&text))
}

/// A file about a processor.
fn of(processor: usize, name: &str) -> PathBuf {
    Path::new("/sys/devices/system/cpu").join(format!("cpu{processor}")).join(name)
}

/// Parses a kernel's list of processors, such as `0-3,8`. `None` for anything else, and for no processors.
fn processors(text: &str) -> Option<BTreeSet<usize>> {
    let range = |part: &str| -> Option<RangeInclusive<usize>> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        // No kernel has more processors: a larger number is damage.
        (first <= last && last < 1 << 16).then_some(first..=last)
    };
    let ranges: Option<Vec<_>> = text.trim().split(',').map(range).collect();
    ranges.map(|ranges| ranges.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    /// A machine's files: one line of siblings per processor, capacities where the kernel gives them, and what else it has.
    fn machine(siblings: &[&str], capacities: &[u64], others: &[(&str, &str)]) -> HashMap<PathBuf, String> {
        let mut files: HashMap<PathBuf, String> =
            others.iter().map(|(path, text)| (PathBuf::from(path), format!("{text}\n"))).collect();
        for (processor, list) in siblings.iter().enumerate() {
            files.insert(of(processor, "topology/core_cpus_list"), format!("{list}\n"));
        }
        for (processor, capacity) in capacities.iter().enumerate() {
            files.insert(of(processor, "cpu_capacity"), format!("{capacity}\n"));
        }
        files
    }

    fn cores(allowed: &str, files: &HashMap<PathBuf, String>) -> Option<usize> {
        let status = format!("Name:\tpangea\nCpus_allowed:\tff\nCpus_allowed_list:\t{allowed}\nMems_allowed:\t1\n");
        linux_compute_cores(&status, |path| files.get(path).cloned())
    }

    /// Neighbouring numbers are one core: `0-1`, `0-1`, `2-3`, …
    const PAIRS: [&str; 8] = ["0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7"];

    /// AMD EPYC 7003, a virtual machine of 2 processors without hyperthreads; its kernel gives equal capacities.
    #[test]
    fn a_virtual_machine_without_hyperthreads_has_a_core_per_processor() {
        assert_eq!(cores("0-1", &machine(&["0", "1"], &[1024, 1024], &[])), Some(2));
    }

    /// Intel Xeon (Sapphire Rapids), a virtual machine: hyperthreads are neighbours.
    #[test]
    fn hyperthreads_count_once_and_only_allowed_ones_count() {
        let files = machine(&PAIRS, &[], &[]);
        assert_eq!(cores("0-7", &files), Some(4));
        assert_eq!(cores("0-3", &files), Some(2), "a cpuset of two cores");
        assert_eq!(cores("0,2,4", &files), Some(3), "one hyperthread of each of three cores");
    }

    /// AMD Ryzen 7 5800X: hyperthreads are eight apart.
    #[test]
    fn hyperthreads_far_apart_count_once() {
        let siblings = ["0,8", "1,9", "2,10", "3,11", "4,12", "5,13", "6,14", "7,15"];
        let files = machine(&[siblings, siblings].concat(), &[], &[]);
        assert_eq!(cores("0-15", &files), Some(8));
    }

    /// Intel Core i7-13700K: 8 performance cores with 2 hyperthreads each, then 8 efficiency cores.
    #[test]
    fn intels_efficiency_cores_do_not_count_beside_performance_cores() {
        let siblings: Vec<String> = (0..24)
            .map(|processor| match processor {
                0..16 => format!("{}-{}", processor / 2 * 2, processor / 2 * 2 + 1),
                _ => processor.to_string(),
            })
            .collect();
        let siblings: Vec<&str> = siblings.iter().map(String::as_str).collect();
        let kinds = [("/sys/devices/cpu_core/cpus", "0-15"), ("/sys/devices/cpu_atom/cpus", "16-23")];
        let files = machine(&siblings, &[], &kinds);
        assert_eq!(cores("0-23", &files), Some(8));
        assert_eq!(cores("14-17", &files), Some(1));
        assert_eq!(cores("16-19", &files), Some(4), "nothing else is allowed");
    }

    /// Four Cortex-A510, three Cortex-A710 and one Cortex-X2.
    #[test]
    fn arms_little_cores_do_not_count_beside_big_ones() {
        let alone = ["0", "1", "2", "3", "4", "5", "6", "7"];
        let files = machine(&alone, &[250, 250, 250, 250, 871, 871, 871, 1024], &[]);
        assert_eq!(cores("0-7", &files), Some(4));
        assert_eq!(cores("0-3", &files), Some(4), "nothing else is allowed");
        for (least, expected) in [(511, 4), (512, 8)] {
            let files = machine(&alone, &[least, least, least, least, 1024, 1024, 1024, 1024], &[]);
            assert_eq!(cores("0-7", &files), Some(expected), "half as fast, or not quite");
        }
    }

    /// A kernel before 5.3 has the older name only.
    #[test]
    fn the_older_name_of_the_list_serves_as_well() {
        let files: HashMap<PathBuf, String> = (0..4)
            .map(|at| (of(at, "topology/thread_siblings_list"), format!("{},{}\n", at % 2, at % 2 + 2)))
            .collect();
        assert_eq!(cores("0-3", &files), Some(2));
    }

    #[test]
    fn what_the_kernel_does_not_say_is_not_guessed() {
        assert_eq!(cores("0-3", &HashMap::new()), None);
        assert_eq!(linux_compute_cores("Name:\tpangea\n", |_| Some("0".to_owned())), None);
        for list in ["", "x", "3-1", "0-", "-1", "0,,1", "99999999999"] {
            assert_eq!(processors(list), None, "{list:?}");
        }
        assert_eq!(processors("0-2,5\n"), Some(BTreeSet::from([0, 1, 2, 5])));
    }
}
