//! A disk of a few megabytes (tmpfs), mounted as root and unmounted when dropped. Never looks at what is on it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Name of the file that fills the disk.
const FILLER: &str = "filler";

/// A mounted disk.
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts a disk of `size_bytes` at `path`, a folder that does not exist yet.
    ///
    /// # Errors
    /// Why this machine mounts none.
    pub fn mount(path: &Path, size_bytes: u64) -> Result<SmallDisk, String> {
        std::fs::create_dir(path).map_err(|error| error.to_string())?;
        let size = format!("size={size_bytes}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "pangea-test"]).arg(path).output();
        match mounted {
            Ok(output) if output.status.success() => Ok(SmallDisk { path: path.to_owned() }),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Where the disk is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets nobody write on the disk any more.
    ///
    /// # Panics
    /// Where the system refuses.
    pub fn make_read_only(&self) {
        let status = Command::new("mount").args(["-o", "remount,ro"]).arg(&self.path).status().unwrap();
        assert!(status.success());
    }

    /// Makes the disk as large as `size_bytes`; what is on it stays.
    ///
    /// # Panics
    /// Where the system refuses.
    pub fn resize(&self, size_bytes: u64) {
        let size = format!("remount,size={size_bytes}");
        let remounted = Command::new("mount").args(["-o", &size]).arg(&self.path).status();
        assert!(remounted.is_ok_and(|status| status.success()), "the disk keeps its size");
    }

    /// Takes all space that is left.
    pub fn fill(&self) {
        let mut filler = std::fs::File::create(self.path.join(FILLER)).unwrap();
        for piece in [1 << 20, 1 << 12, 1] {
            let bytes = vec![0; piece];
            // Ends when no piece of this size fits any more.
            while filler.write_all(&bytes).is_ok() {}
        }
    }

    /// Gives back what [`SmallDisk::fill`] took.
    pub fn clear(&self) {
        std::fs::remove_file(self.path.join(FILLER)).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is about to end may still have a file open.
        let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
    }
}
