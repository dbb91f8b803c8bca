//! A node as a service of the system: the unit of systemd or the property list of launchd, where it belongs, and the commands that
//! make the system know it. Texts and places are pure; `cli::service` writes and runs them.

mod launchd;
mod systemd;

use std::path::{Path, PathBuf};

/// What runs services on this system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manager {
    /// systemd, for the user who asks.
    SystemdUser,
    /// systemd, for the whole system, as a user of its own.
    SystemdSystem,
    /// launchd, for the user who asks.
    Launchd,
}

/// A service to be installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What runs it.
    pub manager: Manager,
    /// Path of the binary.
    pub binary: PathBuf,
    /// Data directory of the node; the service's own where it is the system's.
    pub data_dir: PathBuf,
    /// Further arguments of `pangea node`.
    pub arguments: Vec<String>,
}

/// Data directory of the system's service.
pub const SYSTEM_DATA_DIR: &str = "/var/lib/pangea";

impl Manager {
    /// Where the file of the service belongs; `home`: the user's.
    pub fn file(self, home: &Path) -> PathBuf {
        match self {
            Manager::SystemdUser => home.join(".config/systemd/user/pangea.service"),
            Manager::SystemdSystem => PathBuf::from("/etc/systemd/system/pangea.service"),
            Manager::Launchd => home.join("Library/LaunchAgents").join(format!("{}.plist", launchd::LABEL)),
        }
    }

    /// The commands after the file was written, in order.
    pub fn start(self, file: &Path) -> Vec<Vec<String>> {
        match self {
            Manager::Launchd => vec![launchd::load(file)],
            _ => vec![self.systemctl(&["daemon-reload"]), self.systemctl(&["enable", "--now", systemd::UNIT])],
        }
    }

    /// The commands before the file is removed.
    pub fn stop(self, file: &Path) -> Vec<Vec<String>> {
        match self {
            Manager::Launchd => vec![launchd::unload(file)],
            _ => vec![self.systemctl(&["disable", "--now", systemd::UNIT])],
        }
    }

    /// The commands after the file was removed.
    pub fn forget(self) -> Vec<Vec<String>> {
        match self {
            Manager::Launchd => Vec::new(),
            _ => vec![self.systemctl(&["daemon-reload"])],
        }
    }

    /// The command that says how the service is.
    pub fn show(self) -> Vec<String> {
        match self {
            Manager::Launchd => launchd::show(),
            _ => self.systemctl(&["status", "--no-pager", "--lines=5", systemd::UNIT]),
        }
    }

    /// What a person does to see the log.
    pub fn log(self) -> &'static str {
        match self {
            Manager::SystemdUser => "journalctl --user -u pangea -f",
            Manager::SystemdSystem => "journalctl -u pangea -f",
            Manager::Launchd => "tail -f ~/Library/Logs/pangea.log",
        }
    }

    fn systemctl(self, arguments: &[&str]) -> Vec<String> {
        let user = (self == Manager::SystemdUser).then_some("--user");
        ["systemctl"].into_iter().chain(user).chain(arguments.iter().copied()).map(str::to_owned).collect()
    }
}

impl Service {
    /// Its command line.
    pub fn words(&self) -> Vec<String> {
        let words = [self.binary.to_string_lossy().into_owned(), "node".to_owned()].into_iter();
        let data_dir = ["--data-dir".to_owned(), self.data_dir.to_string_lossy().into_owned()];
        words.chain(data_dir).chain(self.arguments.iter().cloned()).collect()
    }

    /// The content of its file; `home`: the user's.
    ///
    /// # Errors
    /// What in its arguments no file of the manager can hold.
    pub fn text(&self, home: &Path) -> Result<String, String> {
        let words = self.words();
        if let Some(word) = words.iter().find(|word| word.chars().any(char::is_control)) {
            return Err(format!("{word:?} contains a control character"));
        }
        Ok(match self.manager {
            Manager::Launchd => launchd::text(&words, home),
            _ => systemd::text(&words, &self.data_dir, self.manager == Manager::SystemdSystem),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_manager_has_its_file_and_its_commands() {
        let home = Path::new("/home/ada");
        let user = Manager::SystemdUser;
        assert_eq!(user.file(home), Path::new("/home/ada/.config/systemd/user/pangea.service"));
        let line = |commands: Vec<Vec<String>>| commands.into_iter().map(|words| words.join(" ")).collect::<Vec<_>>();
        assert_eq!(
            line(user.start(&user.file(home))),
            ["systemctl --user daemon-reload", "systemctl --user enable --now pangea.service"]
        );
        let system = Manager::SystemdSystem;
        assert_eq!(line(system.stop(&system.file(home))), ["systemctl disable --now pangea.service"]);
        assert_eq!(line(system.forget()), ["systemctl daemon-reload"]);
        let mac = Manager::Launchd;
        assert!(line(mac.start(&mac.file(home)))[0].ends_with("/home/ada/Library/LaunchAgents/net.pangea.node.plist"));
    }

    #[test]
    fn a_control_character_is_refused() {
        let service = Service {
            manager: Manager::SystemdUser,
            binary: "/usr/bin/pangea".into(),
            data_dir: "/home/ada/.pangea".into(),
            arguments: vec!["--name".to_owned(), "a\nExecStartPre=/bin/rm".to_owned()],
        };
        assert!(service.text(Path::new("/home/ada")).unwrap_err().contains("control character"));
    }
}
