//! The memory limit that Linux control groups (cgroups, versions 1 and 2) set for this process. Pure parsing of files
//! below `/proc/self` and in the mounted hierarchies; a function that is passed in reads them.

use std::path::{Path, PathBuf};

/// The smallest memory limit of the process's groups and their ancestors, in bytes. `None` if there is
/// none, or the kernel does not report one.
///
/// * `cgroup`: the text of `/proc/self/cgroup`, see cgroups(7).
/// * `mountinfo`: the text of `/proc/self/mountinfo`, see proc_pid_mountinfo(5).
/// * `read`: the text of a file.
pub(super) fn memory_limit_bytes(cgroup: &str, mountinfo: &str, read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(Mount::parse).collect();
    let groups = cgroup.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        match controllers {
            "" => Some((Version::Two, path)),
            _ if controllers.split(',').any(|controller| controller == "memory") => Some((Version::One, path)),
            _ => None,
        }
    });
    let limits = groups.filter_map(|(version, path)| {
        let mount = mounts.iter().find(|mount| mount.version == version)?;
        mount
            .folders(path)
            .into_iter()
            .filter_map(|folder| read(&folder.join(version.file()))?.trim().parse().ok())
            .min()
    });
    // Version 1 reports no limit as a number beyond any memory, version 2 as a word.
    limits.min().filter(|limit| *limit < i64::MAX as u64 / 2)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The file in a group's folder that contains its limit.
    fn file(self) -> &'static str {
        match self {
            Version::One => "memory.limit_in_bytes",
            Version::Two => "memory.max",
        }
    }
}

/// A mounted hierarchy of groups that can limit memory.
struct Mount {
    version: Version,
    /// The group that appears as the mount's root.
    root: PathBuf,
    point: PathBuf,
}

impl Mount {
    /// Parses a line such as `35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory`.
    fn parse(line: &str) -> Option<Mount> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let mut fields = file_system.split(' ');
        let (kind, options) = (fields.next()?, fields.nth(1)?);
        let version = match kind {
            "cgroup2" => Version::Two,
            "cgroup" if options.split(',').any(|option| option == "memory") => Version::One,
            _ => return None,
        };
        Some(Mount { version, root: unescaped(root), point: unescaped(point) })
    }

    /// The folders of the group at `path` and of its ancestors, as far as they are visible in the mount.
    fn folders(&self, path: &str) -> Vec<PathBuf> {
        // A group outside of the mount's root, as in containers, counts as the mount itself.
        let below = Path::new(path).strip_prefix(&self.root).unwrap_or(Path::new(""));
        let outside = below.components().any(|part| part == std::path::Component::ParentDir);
        let below = if outside { Path::new("") } else { below };
        below.ancestors().map(|part| self.point.join(part)).collect()
    }
}

/// Decodes spaces, tabs, newlines and backslashes, which are written as octal numbers.
fn unescaped(text: &str) -> PathBuf {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, character)| text.replace(code, character))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(cgroup: &str, mountinfo: &str, files: &[(&str, &str)]) -> Option<u64> {
        memory_limit_bytes(cgroup, mountinfo, |path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| format!("{text}\n"))
        })
    }

    const TWO: &str = "24 18 0:22 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_container_of_version_2_has_the_limit_of_its_root() {
        let files = [("/sys/fs/cgroup/memory.max", "536870912")];
        assert_eq!(limit("0::/\n", TWO, &files), Some(512 << 20));
        assert_eq!(limit("0::/\n", TWO, &[("/sys/fs/cgroup/memory.max", "max")]), None);
        assert_eq!(limit("0::/../other\n", TWO, &files), Some(512 << 20), "a group that the container does not see");
    }

    #[test]
    fn the_smallest_limit_of_all_ancestors_holds() {
        let group = "0::/user.slice/user-1000.slice/run-7.scope\n";
        let folder = "/sys/fs/cgroup/user.slice";
        let slice = format!("{folder}/memory.max");
        let user = format!("{folder}/user-1000.slice/memory.max");
        let scope = format!("{folder}/user-1000.slice/run-7.scope/memory.max");
        let files = [(slice.as_str(), "max"), (user.as_str(), "2147483648"), (scope.as_str(), "4294967296")];
        assert_eq!(limit(group, TWO, &files), Some(2 << 30));
    }

    #[test]
    fn a_container_of_version_1_has_the_limit_of_its_group() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            34 31 0:31 /docker/1f /sys/fs/cgroup/cpuset ro master:9 - cgroup cgroup rw,cpuset\n\
            35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro master:10 - cgroup cgroup rw,memory\n";
        let group = "9:cpuset:/docker/1f\n4:memory:/docker/1f\n1:name=systemd:/docker/1f\n";
        let file = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(limit(group, mounts, &[(file, "1073741824")]), Some(1 << 30));
        assert_eq!(limit(group, mounts, &[(file, "9223372036854771712")]), None, "no limit");
        let whole = mounts.replace("/docker/1f /sys", "/ /sys");
        let file = "/sys/fs/cgroup/memory/docker/1f/memory.limit_in_bytes";
        assert_eq!(limit(group, &whole, &[(file, "1073741824")]), Some(1 << 30));
    }

    #[test]
    fn a_host_with_both_versions_has_the_limit_of_the_one_that_limits_memory() {
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let group = "4:memory:/job\n0::/\n";
        assert_eq!(limit(group, mounts, &[("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "77")]), Some(77));
        assert_eq!(limit(group, mounts, &[("/sys/fs/cgroup/memory/memory.limit_in_bytes", "99")]), Some(99));
    }

    #[test]
    fn without_a_report_of_the_kernel_there_is_no_limit() {
        assert_eq!(limit("", "", &[]), None);
        assert_eq!(limit("0::/\n", TWO, &[]), None);
        assert_eq!(limit("garbage\n::\n", "garbage - cgroup2\n", &[]), None);
    }

    #[test]
    fn escaped_spaces_of_mount_points_are_spaces() {
        let mounts = "24 18 0:22 / /mnt/my\\040groups rw - cgroup2 none rw\n";
        assert_eq!(limit("0::/a\n", mounts, &[("/mnt/my groups/a/memory.max", "7")]), Some(7));
    }
}
