//! `pangea service install`, `uninstall` and `status`: a node as a service of the system.

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, Subcommand};

use super::failure::Failure;
use super::print;
use crate::config;
use crate::host;
use crate::service::{Manager, SYSTEM_DATA_DIR, Service};
use crate::storage::whole_file;

const EXAMPLES: &str = "\
What follows -- are arguments of `pangea node`; they are checked before anything
is written.

Examples:
  pangea service install                         a service of yours
  pangea service install -- --model smollm2
  sudo pangea service install --system           of the machine, from its start on
  pangea service install --dry-run               show what would be written";

/// Run a node as a service of this system: systemd or launchd
#[derive(Subcommand, Debug)]
pub(super) enum ServiceCommand {
    /// Install the service and start it
    #[command(after_help = EXAMPLES)]
    Install(InstallArgs),
    /// Stop the service and remove it; the data directory stays
    Uninstall(PlaceArgs),
    /// Show how the service is
    Status(PlaceArgs),
}

/// `service install`.
#[derive(Args, Clone, Debug)]
pub(super) struct InstallArgs {
    /// Whose service.
    #[command(flatten)]
    place: PlaceArgs,
    /// Write what would be installed to standard output, and install nothing
    #[arg(long)]
    dry_run: bool,
    /// Arguments of `pangea node`
    #[arg(last = true, value_name = "NODE ARGUMENTS")]
    arguments: Vec<String>,
}

/// Whose service.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct PlaceArgs {
    /// The system's service, as a user of its own that systemd makes; needs root
    #[arg(long)]
    system: bool,
}

pub(super) fn run(command: ServiceCommand) -> Result<(), Failure> {
    match command {
        ServiceCommand::Install(args) => install(args),
        ServiceCommand::Uninstall(place) => uninstall(manager(place)?),
        ServiceCommand::Status(place) => status(manager(place)?),
    }
}

fn manager(place: PlaceArgs) -> Result<Manager, Failure> {
    match (cfg!(target_os = "macos"), place.system) {
        (true, true) => Err(Failure::usage("launchd runs this node for its user; leave out --system")),
        (true, false) => Ok(Manager::Launchd),
        (false, true) => Ok(Manager::SystemdSystem),
        (false, false) => Ok(Manager::SystemdUser),
    }
}

fn home() -> Result<PathBuf, Failure> {
    host::home().ok_or_else(|| Failure::usage("there is no home directory: HOME is not set"))
}

fn install(args: InstallArgs) -> Result<(), Failure> {
    let manager = manager(args.place)?;
    let binary =
        std::env::current_exe().map_err(|error| Failure::failed(format!("cannot tell where pangea is: {error}")))?;
    let data_dir = match manager {
        Manager::SystemdSystem => PathBuf::from(SYSTEM_DATA_DIR),
        _ => std::path::absolute(config::data_dir(None)?).map_err(|error| Failure::failed(error.to_string()))?,
    };
    let arguments = [args.arguments, vec!["--log-format".to_owned(), "journal".to_owned()]].concat();
    let (home, service) = (home()?, Service { manager, binary, data_dir, arguments });
    super::check_command_line(&service.words())?;
    let file = manager.file(&home);
    let text = service.text(&home).map_err(Failure::usage)?;
    if args.dry_run {
        return print(&text);
    }
    write(&file, &text)?;
    run_all(&manager.start(&file), &file)?;
    let mut said = format!("Installed {} and started it.\nIts log: {}\n", file.display(), manager.log());
    if manager == Manager::SystemdUser {
        said.push_str("It ends when you log out, unless you run: loginctl enable-linger\n");
    }
    print(&said)
}

fn write(file: &Path, text: &str) -> Result<(), Failure> {
    let cannot = |error: std::io::Error| {
        let shown = file.display();
        let advice = if error.kind() == std::io::ErrorKind::PermissionDenied { "; run it with sudo" } else { "" };
        Failure::failed(format!("cannot write {shown}: {error}{advice}"))
    };
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(cannot)?;
    }
    whole_file::replace(file, text.as_bytes()).map_err(cannot)
}

fn uninstall(manager: Manager) -> Result<(), Failure> {
    let file = manager.file(&home()?);
    if !file.exists() {
        return Err(Failure::failed(format!("there is no service to remove: {} does not exist", file.display())));
    }
    run_all(&manager.stop(&file), &file)?;
    std::fs::remove_file(&file)
        .map_err(|error| Failure::failed(format!("cannot remove {}: {error}", file.display())))?;
    run_all(&manager.forget(), &file)?;
    print(&format!("Removed {}. The node's data directory is as it was.\n", file.display()))
}

fn status(manager: Manager) -> Result<(), Failure> {
    let file = manager.file(&home()?);
    if !file.exists() {
        return Err(Failure::failed(format!("the service is not installed: {} does not exist", file.display()))
            .hint("`pangea service install` installs it"));
    }
    let words = manager.show();
    let output = started(&words)?;
    print(&String::from_utf8_lossy(&output.stdout))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let why = if why.is_empty() { "the service does not run".to_owned() } else { why };
            Err(Failure::failed(format!("{why}; its log: {}", manager.log())))
        }
    }
}

fn started(words: &[String]) -> Result<std::process::Output, Failure> {
    let [program, arguments @ ..] = words else { return Err(Failure::failed("there is no command")) };
    Command::new(program).args(arguments).output().map_err(|error| {
        Failure::failed(format!(
            "cannot run {program}: {error}; without it this system has no services that pangea knows"
        ))
    })
}

/// Runs commands of the service manager, in order.
fn run_all(commands: &[Vec<String>], file: &Path) -> Result<(), Failure> {
    for words in commands {
        let output = started(words)?;
        if !output.status.success() {
            let (line, why) = (words.join(" "), String::from_utf8_lossy(&output.stderr).trim().to_owned());
            return Err(Failure::failed(format!(
                "{line} failed: {why}; {} is there, and you can run it again",
                file.display()
            )));
        }
    }
    Ok(())
}
