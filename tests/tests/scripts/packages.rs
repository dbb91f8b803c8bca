//! What `package.sh` makes: each package is installed where nothing else is, used as a person uses it, and removed. All are built once,
//! from the binary that is built already.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use pangea_tests::cluster::binary;
use pangea_tests::command::names_in;
use pangea_tests::skip::{skip, unless_root};
use serde_json::Value;

use super::repository;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The time in the packages, in seconds since 1970: that of a commit could change between two of them.
const TIME: &str = "1790000000";

/// Owner of the data directory in the image.
const IMAGE_USER: &str = "65532:65532";

/// The build folder of the tests, in which `package.sh` keeps its tools.
fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("a folder in the build folder").to_owned()
}

fn package_python() -> PathBuf {
    target().join("package-env/bin/python")
}

/// `package.sh` with these arguments.
fn package(arguments: &[&str]) -> Command {
    let mut command = Command::new("bash");
    command.arg(repository().join("scripts/package.sh")).args(arguments);
    command.env("PANGEA_BIN", binary()).env("CARGO_TARGET_DIR", target()).env("SOURCE_DATE_EPOCH", TIME);
    command.stdin(Stdio::null());
    command
}

/// Standard output of a command that must succeed.
fn output_of(command: &mut Command) -> String {
    let output: Output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{said}\n{errors}", output.status);
    said.into_owned()
}

/// The folder with one package of each kind; `None`, visibly, where the tools that make them were not installed.
fn packages(test: &str) -> Option<&'static Path> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if !package_python().is_file() {
        skip(test, "the tools that make packages are missing; `scripts/setup.sh test` installs them");
        return None;
    }
    let folder = BUILT.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
        let _ = fs::remove_dir_all(&folder);
        output_of(&mut package(&["all", folder.to_str().unwrap()]));
        folder
    });
    Some(folder)
}

/// The package whose name ends so.
fn ending(folder: &Path, end: &str) -> Option<PathBuf> {
    names_in(folder).into_iter().find(|name| name.ends_with(end)).map(|name| folder.join(name))
}

/// Starts the arguments that follow in a file system of their own with this machine's processes and devices, as every container has
/// them. The mounts end with the command.
const ENTER: &str =
    r#"mount --rbind /proc "$1/proc" && mount --rbind /dev "$1/dev" && exec chroot --userspec="$2" "$1" "${@:3}""#;

/// A command of a file system of its own.
fn within(root: &Path, user: &str, home: &str, program: &[&str]) -> Command {
    for folder in ["proc", "dev"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "bash", "-c", ENTER, "bash"]).arg(root).arg(user).args(program).env_clear();
    command.env("HOME", home).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    command
}

/// Checks that `pangea demo` in a file system gives what it promises.
fn assert_demo_runs(root: &Path, user: &str, home: &str) {
    let mut demo = within(root, user, home, &["/usr/bin/pangea", "demo", "--size", "512", "--json"]);
    let told: Value = serde_json::from_str(&output_of(&mut demo)).expect("one JSON document");
    assert!(told.is_object(), "{told}");
}

/// Files below a folder whose path contains `pangea`.
fn traces(folder: &Path) -> Vec<String> {
    let named = output_of(Command::new("find").arg(folder).args(["-path", "*pangea*"]));
    let below = |path: &str| path.strip_prefix(folder.to_str().unwrap()).unwrap().to_owned();
    named.lines().map(below).filter(|path| path.contains("pangea")).collect()
}

/// The links of a Markdown text to files beside it, without their anchors.
fn relative_links(text: &str) -> Vec<&str> {
    let links = text.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
    let files = links.filter(|link| !link.contains(':') && !link.contains(char::is_whitespace));
    files.filter_map(|link| link.split('#').next()).filter(|path| !path.is_empty()).collect()
}

/// Follows every relative link of the documents in a folder and below it; returns how many there were.
fn follow_links(folder: &Path) -> usize {
    let mut followed = 0;
    let mut follow = |page: &Path, text: &str| {
        for link in relative_links(text) {
            assert!(page.parent().unwrap().join(link).is_file(), "{}: {link} leads nowhere", page.display());
            followed += 1;
        }
    };
    for page in output_of(Command::new("find").arg(folder).args(["-name", "*.md"])).lines().map(Path::new) {
        follow(page, &fs::read_to_string(page).unwrap());
    }
    let changelog = folder.join("changelog.gz");
    follow(&changelog, &output_of(Command::new("gzip").arg("-dc").arg(&changelog)));
    followed
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Files of an installed Debian package, copied into a root.
fn copy_package(name: &str, root: &Path) {
    let files = output_of(Command::new("dpkg").args(["-L", name]));
    for path in files.lines().map(Path::new).filter(|path| path.is_file()) {
        let copy = root.join(path.strip_prefix("/").unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(path, copy).unwrap();
    }
}

#[test]
fn a_debian_package_runs_on_a_system_with_nothing_but_what_it_depends_on() {
    let test = "a_debian_package_runs_on_a_system_with_nothing_but_what_it_depends_on";
    if unless_root(test) {
        return;
    }
    let Some(folder) = packages(test) else { return };
    let Some(package) = ending(folder, ".deb") else {
        return skip(test, "dpkg-deb is not installed: this is no relative of Debian");
    };
    let system = tempfile::tempdir().unwrap();
    let system = system.path();
    for folder in ["var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers", "root", "tmp"] {
        fs::create_dir_all(system.join(folder)).unwrap();
    }
    let depends = output_of(Command::new("dpkg-deb").arg("-f").arg(&package).arg("Depends"));
    let mut status = String::new();
    for dependency in depends.trim().split(", ").map(|dependency| dependency.split(' ').next().unwrap()) {
        copy_package(dependency, system);
        status += &output_of(Command::new("dpkg").args(["-s", dependency]));
        status.push('\n');
    }
    // The shell of the package's own scripts is on every Debian system.
    copy_package("dash", system);
    fs::write(system.join("var/lib/dpkg/status"), status).unwrap();
    let dpkg = |arguments: &[&str]| {
        // What the dependencies depend on in turn is not there: the entry of each is for its version only.
        let mut command = Command::new("dpkg");
        output_of(command.arg(format!("--root={}", system.display())).args(arguments));
    };
    dpkg(&["-i", package.to_str().unwrap()]);

    let documents = system.join("usr/share/doc/pangea");
    for path in ["usr/share/man/man1/pangea-node.1.gz", "usr/share/bash-completion/completions/pangea"] {
        assert!(system.join(path).exists(), "{path}");
    }
    let unit = fs::read_to_string(system.join("lib/systemd/system/pangea.service")).unwrap();
    assert!(unit.contains("ExecStart=\"/usr/bin/pangea\" \"node\""), "{unit}");
    let unpacked = |name: &str| output_of(Command::new("gzip").arg("-dc").arg(documents.join(name)));
    let changelog = fs::read_to_string(repository().join("node/book/src/changelog.md")).unwrap();
    assert_eq!(unpacked("changelog.gz").lines().count(), changelog.lines().count());
    let followed = follow_links(&documents);
    assert!(followed > 100, "only {followed} links were found: the book is missing");
    assert!(unpacked("pangea.cdx.json.gz").contains("\"CycloneDX\""));
    assert_demo_runs(system, "0:0", "/root");

    dpkg(&["--purge", "pangea"]);
    assert_eq!(traces(system), Vec::<String>::new());
}

/// Uses the client and the program that the wheel brought: a product by a node that is started from what the package finds.
const USE_OF_THE_WHEEL: &str = r#"
import json, os, subprocess, sys
import numpy as np
import pangea

program = pangea.find_binary()
data = os.path.join(os.environ["HOME"], "data")
node = subprocess.Popen(
    [program, "node", "--data-dir", data, "--no-mdns", "--listen", "/ip4/127.0.0.1/tcp/0", "--rpc-addr", "127.0.0.1:0", "--no-api"],
    stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
)
try:
    for line in node.stderr:
        if "Listening on" in line:
            break
    a, b = np.arange(12, dtype=np.int8).reshape(3, 4), np.arange(8, dtype=np.int8).reshape(4, 2)
    with pangea.Client(f"unix:{data}/rpc.sock") as client:
        assert (client.matmul(a, b) == a.astype(np.int32) @ b).all()
finally:
    node.terminate()
    node.stderr.read()
assert node.wait() == 0, "the node drains and ends"
print(program)
"#;

#[test]
fn a_wheel_brings_the_program_and_the_client() {
    let test = "a_wheel_brings_the_program_and_the_client";
    let Some(folder) = packages(test) else { return };
    let wheel = ending(folder, ".whl").expect("a wheel");
    let name = wheel.file_name().unwrap().to_str().unwrap();
    if cfg!(target_os = "linux") {
        let library =
            name.split("-manylinux_2_").nth(1).and_then(|rest| rest.split('_').next()).expect("its C library");
        let needed = newest_c_library();
        assert!(library.parse::<u32>().unwrap() >= needed, "{name} needs the C library 2.{needed}");
    }

    let user = tempfile::tempdir().unwrap();
    let home = user.path().join("home");
    fs::create_dir(&home).unwrap();
    let environment = user.path().join("environment");
    let run = |program: &Path, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().current_dir(user.path()).stdin(Stdio::null());
        command.env("HOME", &home).env("PATH", "/usr/bin:/bin").env("PIP_CACHE_DIR", target().join("pip-cache"));
        command
    };
    output_of(&mut run(&package_python(), &["-m", "venv", environment.to_str().unwrap()]));
    let bin = environment.join("bin");
    let (python, program) = (bin.join("python"), bin.join("pangea"));
    let pip = ["-m", "pip", "--quiet", "--disable-pip-version-check"];
    let wheel = wheel.to_str().unwrap();
    let installed = run(&python, &[&pip[..], &["install", wheel]].concat()).output().unwrap();
    if !installed.status.success() {
        let why = String::from_utf8_lossy(&installed.stderr);
        assert!(why.contains("No matching distribution") || why.contains("Connection"), "{why}");
        return skip(test, "the packages that the client depends on cannot be downloaded");
    }

    let said = output_of(&mut run(&program, &["demo", "--size", "512", "--json"]));
    assert!(serde_json::from_str::<Value>(&said).unwrap().is_object(), "{said}");
    let found = output_of(&mut run(&python, &["-c", USE_OF_THE_WHEEL]));
    assert_eq!(Path::new(found.trim()), program);
    assert_eq!(output_of(&mut run(&python, &["-m", "pangea", "--version"])), format!("pangea {VERSION}\n"));
    let files = output_of(&mut run(&python, &[&pip[..2], &["show", "--files", "pangea"]].concat()));
    for file in ["dist-info/sboms/pangea.cdx.json", "dist-info/licenses/LICENSE", "pangea/schema/node.capnp"] {
        assert!(files.contains(file), "{file} is not in\n{files}");
    }

    let description = "import importlib.metadata as of; print(of.metadata('pangea').get_payload())";
    let description = output_of(&mut run(&python, &["-c", description]));
    assert!(description.contains("pangea"), "{description}");
    assert_eq!(relative_links(&description), Vec::<&str>::new(), "the wheel ships no other page");

    output_of(&mut run(&python, &[&pip[..], &["uninstall", "--yes", "pangea"]].concat()));
    assert_eq!(traces(&environment), Vec::<String>::new());
    // The node's own data, where it was told to keep them.
    assert_eq!(names_in(&home), ["data"]);
}

/// Every text in the binary that matches a regular expression.
fn texts_in_binary(expression: &str) -> BTreeSet<String> {
    output_of(Command::new("grep").args(["-aoE", expression]).arg(binary())).lines().map(str::to_owned).collect()
}

/// The minor version of the newest glibc 2 whose symbols the binary names.
fn newest_c_library() -> u32 {
    let version = |name: &String| name.strip_prefix("GLIBC_2.").and_then(|minor| minor.parse().ok());
    texts_in_binary(r"GLIBC_2\.[0-9]+").iter().filter_map(version).max().expect("a binary that uses the C library")
}

#[test]
fn an_image_has_the_same_bytes_twice_and_runs_with_nothing_else() {
    let test = "an_image_has_the_same_bytes_twice_and_runs_with_nothing_else";
    if !cfg!(target_os = "linux") || unless_root(test) {
        return;
    }
    let Some(folder) = packages(test) else { return };
    let archive = ending(folder, ".oci.tar").expect("an image");
    let again = tempfile::tempdir().unwrap();
    let second = output_of(&mut package(&["oci", again.path().to_str().unwrap()]));
    assert!(fs::read(&archive).unwrap() == fs::read(second.trim()).unwrap(), "the two images differ");

    let image = again.path().join("image");
    fs::create_dir(&image).unwrap();
    output_of(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&image));
    let sha256 = |path: &Path| output_of(Command::new("sha256sum").arg(path)).split(' ').next().unwrap().to_owned();
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let path = image.join("blobs/sha256").join(digest);
        assert_eq!(sha256(&path), digest);
        assert_eq!(fs::metadata(&path).unwrap().len(), descriptor["size"].as_u64().unwrap());
        path
    };
    assert_eq!(read_json(&image.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let manifest = read_json(&blob(&read_json(&image.join("index.json"))["manifests"][0]));
    let config = read_json(&blob(&manifest["config"]));
    let layers: Vec<PathBuf> = manifest["layers"].as_array().unwrap().iter().map(blob).collect();
    assert_eq!(config["created"], "2026-09-21T14:13:20Z");
    assert_eq!(config["config"]["User"], IMAGE_USER);
    assert_eq!(
        (&config["config"]["Entrypoint"][0], &config["config"]["Cmd"][0]),
        (&"/usr/bin/pangea".into(), &"node".into())
    );
    let data = config["config"]["Volumes"].as_object().unwrap().keys().next().unwrap();
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), layers.len());

    let root = again.path().join("root");
    fs::create_dir(&root).unwrap();
    for (layer, diff) in layers.iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap()) {
        let tar = again.path().join("layer.tar");
        let mut gzip = Command::new("gzip");
        output_of(gzip.arg("-dc").arg(layer).stdout(fs::File::create(&tar).unwrap()).stderr(Stdio::inherit()));
        assert_eq!(format!("sha256:{}", sha256(&tar)), diff.as_str().unwrap());
        output_of(Command::new("tar").args(["--same-owner", "-xpf"]).arg(&tar).arg("-C").arg(&root));
    }
    let version = output_of(&mut within(&root, IMAGE_USER, data, &["/usr/bin/pangea", "--version"]));
    assert_eq!(version, format!("pangea {VERSION}\n"));
    assert_demo_runs(&root, IMAGE_USER, data);

    match Command::new("skopeo").arg("inspect").arg(format!("oci-archive:{}", archive.display())).output() {
        Ok(inspected) => {
            assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stderr));
            let told: Value = serde_json::from_slice(&inspected.stdout).unwrap();
            assert_eq!(told["Labels"]["org.opencontainers.image.version"], VERSION);
        }
        Err(_) => skip(test, "skopeo is not installed: no other tool has read the image"),
    }
}

#[test]
fn a_homebrew_formula_is_ruby_and_names_the_release() {
    let test = "a_homebrew_formula_is_ruby_and_names_the_release";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let (url, sum) = (format!("https://example.org/pangea/pangea/archive/v{VERSION}.tar.gz"), "0f".repeat(32));
    output_of(&mut package(&["brew", path, &url, &sum]));
    let formula = fs::read_to_string(folder.path().join("pangea.rb")).unwrap();
    for line in [
        format!("url \"{url}\""),
        format!("sha256 \"{sum}\""),
        "homepage \"https://example.org/pangea/pangea\"".to_owned(),
    ] {
        assert!(formula.contains(&line), "{line} is not in\n{formula}");
    }
    for wrong in [&["brew", path, &url][..], &["brew", path, &url, "0f"], &["brew", path, "file:///x.tar.gz", &sum]] {
        assert_eq!(package(wrong).output().unwrap().status.code(), Some(2), "{wrong:?}");
    }
    match Command::new("ruby").arg("-c").arg(folder.path().join("pangea.rb")).output() {
        Ok(checked) => assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr)),
        Err(_) => skip(test, "ruby is not installed"),
    }
}

/// Validates the file that is its argument with the schema of CycloneDX.
const VALIDATE: &str = "
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
error = JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read())
sys.exit(0 if error is None else f'{error}')
";

#[test]
fn the_list_of_components_is_valid_and_has_every_crate_that_the_binary_names() {
    let test = "the_list_of_components_is_valid_and_has_every_crate_that_the_binary_names";
    let Some(folder) = packages(test) else { return };
    let list = ending(folder, ".cdx.json").expect("a list of components");
    output_of(Command::new(package_python()).args(["-c", VALIDATE]).arg(&list));
    let list = read_json(&list);
    assert_eq!(
        (&list["metadata"]["component"]["name"], &list["metadata"]["component"]["version"]),
        (&"pangea".into(), &VERSION.into())
    );
    let components = list["components"].as_array().unwrap();
    let required = |of: &str| {
        let found = components.iter().find(|component| component["bom-ref"] == of);
        found.is_some_and(|component| component["scope"] == "required" && !component["licenses"].is_null())
    };
    // Sources that debugging symbols and messages of panics name: PATH/registry/src/INDEX/NAME-VERSION/src/FILE.
    let sources = texts_in_binary("/registry/src/[^/]+/[A-Za-z0-9_.+-]+/");
    let named: BTreeSet<String> = sources.iter().filter_map(|path| crate_of(path)).collect();
    assert!(named.len() > 100, "{named:?}");
    for name in named {
        assert!(required(&name), "{name} is in the binary and not in the list");
    }
    for package in ["npm:preact@", "npm:uplot@"] {
        let listed = components.iter().filter_map(|component| component["bom-ref"].as_str());
        assert!(listed.filter(|of| of.starts_with(package)).any(required), "{package} of the console");
    }
}

/// The reference in the list of the crate whose folder a path ends with.
fn crate_of(path: &str) -> Option<String> {
    let folder = path.trim_end_matches('/').rsplit('/').next()?;
    let mut dashes = folder.match_indices('-').map(|(at, _)| at);
    let at = dashes.find(|at| folder[at + 1..].starts_with(|c: char| c.is_ascii_digit()))?;
    Some(format!("cargo:{}@{}", &folder[..at], &folder[at + 1..]))
}

#[test]
fn every_version_is_that_of_the_workspace() {
    let changelog = fs::read_to_string(repository().join("node/book/src/changelog.md")).unwrap();
    let newest = changelog.lines().find_map(|line| line.strip_prefix("## [")).expect("an entry");
    assert_eq!(newest.split(']').next(), Some(VERSION), "the newest entry of the changelog");
    let client = fs::read_to_string(repository().join("client/python/pyproject.toml")).unwrap();
    assert!(client.contains(&format!("\nversion = \"{VERSION}\"\n")), "the version of the Python client");
}

#[test]
fn the_help_says_what_can_be_made_and_anything_else_is_bad_usage() {
    let help = output_of(&mut package(&["--help"]));
    for kind in ["deb", "wheel", "oci", "brew", "sbom", "all"] {
        assert!(help.contains(&format!("\n  {kind} [FOLDER")), "{kind} is not in\n{help}");
    }
    for wrong in [&["rpm"][..], &["deb", "one", "two"]] {
        let output = package(wrong).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(2), false), "{wrong:?}");
    }
}
