//! The README's section for a household, followed word for word: each machine is a host of its own, with its own home, and every line
//! of the section's commands is given to a shell there. Only the six digits are those that the machines show.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use pangea_tests::cluster::{Output, binary, output};
use pangea_tests::namespaces::{Namespace, Namespaces};
use pangea_tests::process::{Process, TIMEOUT};
use pangea_tests::skip::{skip, unless_root};
use pangea_tests::test_model::{GEMMA3, SMOLLM2, file_of};

const TEST: &str = "a_household_follows_the_readme_word_for_word";

const MACHINES: [&str; 3] = ["desk", "laptop", "closet"];

/// What the README has a person do.
#[derive(Debug, PartialEq)]
enum Step {
    Type { machine: &'static str, line: String },
    SwitchOff(&'static str),
}

/// The steps of the section, in order: the machine is the one that was named last before a block of commands.
fn steps() -> Vec<Step> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let section =
        readme.split("\n## ").find(|section| section.starts_with("A household\n")).expect("the section is there");
    let (mut steps, mut machine, mut in_block) = (Vec::new(), None, false);
    for line in section.lines() {
        if line.starts_with("```") {
            in_block = line == "```bash";
        } else if in_block {
            steps.push(Step::Type { machine: machine.expect("a machine is named"), line: line.to_owned() });
        } else {
            let named = MACHINES.into_iter().filter_map(|name| Some((line.rfind(&format!("**{name}**"))?, name))).max();
            machine = named.map(|(_, name)| name).or(machine);
            let off = line
                .split_once("Switch the **")
                .and_then(|(_, rest)| MACHINES.into_iter().find(|name| rest.starts_with(name)));
            steps.extend(off.map(Step::SwitchOff));
        }
    }
    steps
}

struct Machine {
    host: Namespace,
    home: PathBuf,
    node: Option<Process>,
}

struct Household {
    folder: tempfile::TempDir,
    machines: BTreeMap<&'static str, Machine>,
}

impl Household {
    fn new(network: &Namespaces) -> Household {
        let folder = tempfile::tempdir().unwrap();
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        symlink(binary(), bin.join("pangea")).unwrap();
        let machine = |(name, host): (&'static str, &Namespace)| {
            let home = folder.path().join(name);
            std::fs::create_dir(&home).unwrap();
            (name, Machine { host: host.clone(), home, node: None })
        };
        let machines = MACHINES.into_iter().zip(network.hosts()).map(machine).collect();
        Household { folder, machines }
    }

    /// The model is on the machine's disk, as after `pangea models pull`.
    fn has(&self, machine: &str, model: &Path) {
        let models = self.machines[machine].home.join(".pangea/models");
        std::fs::create_dir_all(&models).unwrap();
        symlink(model, models.join(model.file_name().unwrap())).unwrap();
    }

    /// Starts a line in a shell of a machine.
    fn start(&self, machine: &str, line: &str) -> Process {
        let Machine { host, home, .. } = &self.machines[machine];
        let mut command: Command = host.command(Path::new("bash"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PANGEA_")) {
            command.env_remove(name);
        }
        let path = format!("{}:{}", self.folder.path().join("bin").display(), std::env::var("PATH").unwrap());
        // The shell becomes the program, which then is what is switched off. A host's name is that of the machine that tests.
        command.args(["-c", &format!("exec {line}")]).env("HOME", home).env("PATH", path).env("PANGEA_NAME", machine);
        command.current_dir(home);
        Process::start(machine, command, &self.folder.path().join(format!("{machine}.log")))
    }

    /// Types a line until it succeeds and shows what is expected, as a person does who was too early.
    fn until(&self, machine: &str, line: &str, expected: impl Fn(&Output) -> bool) -> Output {
        let began = Instant::now();
        loop {
            let output = output(&self.start(machine, line));
            if output.code == Some(0) && expected(&output) {
                return output;
            }
            assert!(
                began.elapsed() < TIMEOUT,
                "on the {machine}, `{line}` does not do what the README says: {output:?}"
            );
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
    }

    fn node(&self, machine: &str) -> &Process {
        self.machines[machine].node.as_ref().expect("its node runs")
    }
}

/// The six digits behind `before`.
fn digits_behind(text: &str, before: &str) -> String {
    text.split_once(before).unwrap().1.chars().filter(char::is_ascii_digit).take(6).collect()
}

#[test]
fn a_household_follows_the_readme_word_for_word() {
    if unless_root(TEST) {
        return;
    }
    let (Some(smollm2), Some(gemma3)) = (file_of(SMOLLM2, TEST), file_of(GEMMA3, TEST)) else { return };
    let network = match Namespaces::new(MACHINES.len()) {
        Ok(network) => network,
        Err(why) => return skip(TEST, &format!("no network namespaces can be made: {why}")),
    };
    let mut household = Household::new(&network);
    household.has("desk", &smollm2);
    household.has("laptop", &gemma3);
    let (mut pin, mut digits, mut is_off) = (String::new(), String::new(), false);
    for step in steps() {
        let (machine, line) = match step {
            Step::SwitchOff(machine) => {
                household.machines.get_mut(machine).unwrap().node = None;
                is_off = true;
                continue;
            }
            Step::Type { machine, line } => (machine, line.replace("481516", &pin).replace("048151", &digits)),
        };
        eprintln!("{machine}$ {line}");
        let contains = |text: &'static str| move |output: &Output| output.out.contains(text);
        match line.as_str() {
            line if line.starts_with("pangea node") => {
                let node = household.start(machine, line);
                node.line("Listening on ");
                household.machines.get_mut(machine).unwrap().node = Some(node);
                is_off = false;
            }
            "pangea invite" => pin = digits_behind(&household.until(machine, &line, |_| true).out, "PIN "),
            "pangea members list" => drop(household.until(machine, &line, contains("closet"))),
            "pangea members accept closet" => {
                let shown = household.until(machine, &line, |_| true).out;
                digits = digits_behind(&shown, "must show ");
                let log = household.node("closet").line("offers to admit this node").text;
                assert_eq!(digits_behind(&log, "--digits "), digits, "both show the same");
            }
            line if line.contains("/v1/models") => {
                let lists =
                    |output: &Output| output.out.contains("smollm2") && output.out.contains("gemma3-270m") != is_off;
                household.until(machine, line, lists);
            }
            line if line.starts_with("pangea chat") => drop(household.until(machine, line, contains("Paris"))),
            line if line.contains("/v1/completions") => {
                household.until(machine, line, contains("\"finish_reason\":\"length\""));
            }
            line if line.starts_with("pangea peers") => {
                household.until(machine, line, |output| {
                    ["desk", "laptop"].iter().all(|name| output.out.contains(name))
                        && output.out.matches(" connected ").count() == 2
                });
            }
            line => drop(household.until(machine, line, |output| !output.out.is_empty())),
        }
    }
    assert!(!is_off && pin.len() == 6 && digits.len() == 6, "every step was taken");
    for machine in MACHINES {
        household.node(machine).signal(rustix::process::Signal::TERM);
        assert_eq!(household.node(machine).wait().code(), Some(0));
    }
}
