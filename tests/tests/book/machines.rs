//! The machines of a page: network namespaces with homes of their own, where blocks run as a person would run them. A page has no way
//! to other networks, and its nodes have the usual ports.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pangea_tests::cluster::{Cluster, Output, binary, output};
use pangea_tests::namespaces::{Namespace, Namespaces};
use pangea_tests::process::{Process, TIMEOUT};
use rustix::process::Signal;

use crate::page::{Block, HERE, Language, Page, Step, matches, six_digits};

/// Environment variable that names the Python with the packages of `client/python[test]`.
const PYTHON: &str = "PANGEA_TEST_PYTHON";

/// Interval between two tries of a block that is repeated.
const AGAIN: Duration = Duration::from_millis(200);

/// The folder with `python3`: by default that of the environment that `scripts/setup.sh test` makes beside the build.
pub(crate) fn python_folder() -> PathBuf {
    let python = std::env::var_os(PYTHON).map(PathBuf::from).unwrap_or_else(|| {
        // Tests are in target/PROFILE/deps.
        std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("python-env/bin/python3")
    });
    python.parent().unwrap().to_owned()
}

struct Machine {
    host: Namespace,
    home: PathBuf,
    /// What was started in the background and not switched off.
    running: Vec<Process>,
}

/// The machines of one page.
pub(crate) struct Machines<'a> {
    page: &'a Page,
    cluster: &'a Cluster,
    machines: BTreeMap<String, Machine>,
    /// Files of the models that the page downloads, by name.
    models: BTreeMap<String, PathBuf>,
    /// Digits of the page, and those that the machines show.
    digits: BTreeMap<String, String>,
}

impl<'a> Machines<'a> {
    /// One machine per name.
    pub(crate) fn new(
        page: &'a Page,
        cluster: &'a Cluster,
        names: &[String],
        network: &Namespaces,
        models: BTreeMap<String, PathBuf>,
    ) -> Machines<'a> {
        let folder = cluster.folder();
        let bin = folder.join("bin");
        std::fs::create_dir(&bin).unwrap();
        symlink(binary(), bin.join("pangea")).unwrap();
        let machine = |(name, host): (&String, &Namespace)| {
            let home = folder.join(name);
            std::fs::create_dir(&home).unwrap();
            (name.clone(), Machine { host: host.clone(), home, running: Vec::new() })
        };
        let machines = names.iter().zip(network.hosts()).map(machine).collect();
        Machines { page, cluster, machines, models, digits: BTreeMap::new() }
    }

    /// Takes a step of the page.
    ///
    /// # Panics
    /// Where a block does not do what the page says.
    pub(crate) fn take(&mut self, step: &Step) {
        match step {
            Step::Run(block) => self.run(block),
            Step::SwitchOff(machine) => {
                // Each process is killed when dropped.
                self.machines.get_mut(machine).unwrap().running.clear();
            }
            Step::Copy { from, to } => {
                let folder = self.cluster.folder();
                std::fs::copy(folder.join(from), folder.join(to)).unwrap();
            }
        }
    }

    fn run(&mut self, block: &Block) {
        for model in block.pulled() {
            self.has(&block.host, &self.models[&model]);
        }
        let text = self.with_real_digits(&block.text);
        match block.language {
            Language::Python => self.run_to_the_end(block, &["python3", "-c", &text]),
            Language::Bash => {
                let mut typed = String::new();
                for line in text.lines() {
                    if let Some(line) = line.strip_suffix(" &") {
                        self.run_in_bash(block, &std::mem::take(&mut typed));
                        self.start(&block.host, line);
                    } else {
                        typed.extend([line, "\n"]);
                    }
                }
                self.run_in_bash(block, &typed);
            }
        }
    }

    fn run_in_bash(&mut self, block: &Block, lines: &str) {
        if !lines.is_empty() {
            self.run_to_the_end(block, &["bash", "-euo", "pipefail", "-c", lines]);
        }
    }

    fn run_to_the_end(&mut self, block: &Block, words: &[&str]) {
        let expected = block.output.as_ref().map(|expected| self.with_real_digits(expected));
        let began = Instant::now();
        let output = loop {
            let output = output(&self.process(&block.host, words));
            let is_as_said = output.code == Some(block.exit)
                && expected.as_ref().is_none_or(|expected| matches(expected, &output.out));
            if is_as_said {
                break output;
            }
            assert!(
                block.retry && began.elapsed() < TIMEOUT,
                "{} does not do what the page says on the machine {}: exit code {:?} instead of {}\n{}\n{}\nexpected:\n{}",
                self.page.at(block.line),
                block.host,
                output.code,
                block.exit,
                output.out,
                output.err,
                expected.unwrap_or_default()
            );
            std::thread::sleep(AGAIN);
        };
        self.note_digits(block, &output);
    }

    fn note_digits(&mut self, block: &Block, output: &Output) {
        if let Some(written) = &block.digits {
            let real = six_digits(&output.out);
            let real = real.unwrap_or_else(|| panic!("{}: no six digits: {output:?}", self.page.at(block.line)));
            self.digits.insert(written.clone(), real);
        }
    }

    fn with_real_digits(&self, text: &str) -> String {
        self.digits.iter().fold(text.to_owned(), |text, (written, real)| text.replace(written, real))
    }

    /// Starts a line in the background; a node listens on return.
    fn start(&mut self, host: &str, line: &str) {
        // The shell becomes the program, which then is what is switched off.
        let process = self.process(host, &["bash", "-c", &format!("exec env {line}")]);
        if line.contains("pangea node") {
            process.line("Listening on ");
        }
        self.machines.get_mut(host).unwrap().running.push(process);
    }

    fn process(&self, host: &str, words: &[&str]) -> Process {
        let Machine { host: namespace, home, .. } = &self.machines[host];
        let mut command: Command = namespace.command(Path::new(words[0]));
        for (name, _) in std::env::vars_os() {
            if ["PANGEA_", "HF_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(name);
            }
        }
        let folders = [self.cluster.folder().join("bin"), python_folder()];
        let before = std::env::var_os("PATH").unwrap();
        let path = std::env::join_paths(folders.into_iter().chain(std::env::split_paths(&before))).unwrap();
        let client = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("client/python/src");
        command.args(&words[1..]).current_dir(home).env("HOME", home).env("PATH", path).env("COLUMNS", "80");
        command.env("PYTHONPATH", client).env("PYTHONDONTWRITEBYTECODE", "1");
        if host != HERE {
            // A host's name is that of the machine that tests.
            command.env("PANGEA_NAME", host);
        }
        Process::start(host, command, &self.cluster.folder().join(format!("{host}.log")))
    }

    /// The model is on the machine's disk, as after `pangea models pull`.
    fn has(&self, machine: &str, model: &Path) {
        let models = self.machines[machine].home.join(".pangea/models");
        DirBuilder::new().recursive(true).mode(0o700).create(&models).unwrap();
        let file = models.join(model.file_name().unwrap());
        if !file.exists() {
            symlink(model, file).unwrap();
        }
    }

    /// Ends what still runs, as a person does with Ctrl-C.
    ///
    /// # Panics
    /// Where a node does not end with exit code 0.
    pub(crate) fn end(self) {
        let running: Vec<Process> = self.machines.into_values().flat_map(|machine| machine.running).collect();
        // A page may have killed a node.
        let running: Vec<Process> = running.into_iter().filter(|process| !process.has_ended()).collect();
        for process in &running {
            process.signal(Signal::TERM);
        }
        for process in &running {
            assert_eq!(process.wait().code(), Some(0));
        }
    }
}
