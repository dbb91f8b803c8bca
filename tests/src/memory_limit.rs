//! A limit on a process's memory that the kernel enforces: a control group of its own, removed when dropped. A process that
//! passes it is killed. Knows version 1 and 2 of control groups.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Control groups of version 1 and of version 2: the folder of all groups, and the file in a group that limits it.
const HIERARCHIES: [(&str, &str); 2] =
    [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];

/// A control group.
pub struct MemoryLimit {
    folder: PathBuf,
}

impl MemoryLimit {
    /// A group `name` whose processes together have `bytes`.
    ///
    /// # Errors
    /// Why this machine makes none.
    pub fn new(name: &str, bytes: u64) -> Result<MemoryLimit, String> {
        let usable = |(root, file): &&(&str, &str)| {
            Path::new(root).join("cgroup.procs").exists() && {
                let version_1 = *file == "memory.limit_in_bytes";
                version_1
                    || std::fs::read_to_string(Path::new(root).join("cgroup.subtree_control"))
                        .is_ok_and(|on| on.contains("memory"))
            }
        };
        let Some((root, file)) = HIERARCHIES.iter().find(usable) else {
            return Err("there are no control groups for memory".to_owned());
        };
        let limit = MemoryLimit { folder: Path::new(root).join(format!("{name}-{}", std::process::id())) };
        let say = |error: std::io::Error| format!("{}: {error}", limit.folder.display());
        std::fs::create_dir(&limit.folder).map_err(say)?;
        std::fs::write(limit.folder.join(file), bytes.to_string()).map_err(say)?;
        Ok(limit)
    }

    /// `program` in the group from its first instruction on; the process that starts becomes the program.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", r#"echo $$ > "$0" && exec "$@""#]).arg(self.folder.join("cgroup.procs")).arg(program);
        command
    }

    /// Puts a process and all its threads into the group.
    pub fn hold(&self, pid: u32) {
        std::fs::write(self.folder.join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        // A group is removed once its last process is gone, which a killed process is a moment later.
        for _ in 0..200 {
            if std::fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        eprintln!("{} could not be removed", self.folder.display());
    }
}
