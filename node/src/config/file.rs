//! `config.toml`: the flags of `pangea node` by their names, one key each. The file is read as arguments, so that a key
//! takes exactly what its flag takes. Anything else is an error with its line and column. No defaults are filled in here.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use clap::builder::ValueHint;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgAction, Command};
use thiserror::Error;
use toml::de::{DeTable, DeValue};

use super::raw::with_value;

/// Flags that say which file is read, and so cannot be in it.
const NOT_IN_FILE: [&str; 2] = ["config", "data-dir"];

/// The settings of a `config.toml`, not yet checked against the flags.
#[derive(Clone, Debug, Default)]
pub struct ConfigFile {
    path: PathBuf,
    settings: Vec<Setting>,
}

/// A key with its value.
#[derive(Clone, Debug)]
struct Setting {
    key: String,
    /// Place of the key.
    place: Place,
    value: Value,
    /// Place of the value.
    value_place: Place,
}

/// Line and column in the file. Both start at 1; columns count characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    line: usize,
    column: usize,
}

#[derive(Clone, Debug)]
enum Value {
    Switch(bool),
    One(String),
    List(Vec<(String, Place)>),
}

/// A `config.toml` that cannot be used.
#[derive(Debug, Error)]
pub enum ConfigFileError {
    /// The file cannot be read.
    #[error("the configuration {} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not TOML, or has an unknown key or an invalid value.
    #[error("{}:{line}:{column}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// 1-based line.
        line: usize,
        /// 1-based column, in characters.
        column: usize,
        /// What is wrong there.
        why: String,
    },
    /// The settings of the file conflict with the flags on the command line.
    #[error("the configuration {} conflicts with the flags: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl ConfigFile {
    /// Parses `text`. `path` is used in messages, and relative paths in `text` are relative to its folder.
    ///
    /// # Errors
    /// [`ConfigFileError::Malformed`] if `text` is not TOML, or has a value of a type that no flag has.
    pub fn parse(text: &str, path: &Path) -> Result<ConfigFile, ConfigFileError> {
        let malformed = |at: usize, why: String| {
            let Place { line, column } = place(text, at);
            ConfigFileError::Malformed { path: path.to_owned(), line, column, why }
        };
        let table = DeTable::parse(text).map_err(|error| {
            let why = error.message().trim_end().replace('\n', "; ");
            malformed(error.span().map_or(0, |span| span.start), why)
        })?;
        let mut settings = Vec::new();
        for (key, value) in table.into_inner() {
            let at = value.span().start;
            let parsed = match value.into_inner() {
                DeValue::Boolean(on) => Value::Switch(on),
                DeValue::Array(items) => {
                    let items = items.into_iter().map(|item| {
                        let at = item.span().start;
                        let one = single(item.into_inner());
                        one.map(|text_of| (text_of, place(text, at)))
                            .ok_or_else(|| malformed(at, format!("{}: a list holds texts or numbers", key.get_ref())))
                    });
                    Value::List(items.collect::<Result<_, _>>()?)
                }
                other => match single(other) {
                    Some(one) => Value::One(one),
                    None => {
                        let why = format!("{}: use a text, a number, true, false or a list", key.get_ref());
                        return Err(malformed(at, why));
                    }
                },
            };
            settings.push(Setting {
                place: place(text, key.span().start),
                key: key.into_inner().into_owned(),
                value: parsed,
                value_place: place(text, at),
            });
        }
        settings.sort_by_key(|setting| (setting.place.line, setting.place.column));
        Ok(ConfigFile { path: path.to_owned(), settings })
    }

    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    /// [`ConfigFileError`] if the file cannot be read or parsed.
    pub fn load(path: &Path) -> Result<ConfigFile, ConfigFileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigFileError::Unreadable { path: path.to_owned(), source })?;
        ConfigFile::parse(&text, path)
    }

    /// As [`ConfigFile::load`], but empty if the file does not exist.
    ///
    /// # Errors
    /// [`ConfigFileError`] if the file exists and cannot be read or parsed.
    pub fn load_if_there(path: &Path) -> Result<ConfigFile, ConfigFileError> {
        match ConfigFile::load(path) {
            Err(ConfigFileError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(ConfigFile::default())
            }
            result => result,
        }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The text that the file sets `flag` to, unchanged; `None` if the file does not set it to a text.
    pub fn text_of(&self, flag: &str) -> Option<&str> {
        match &self.settings.iter().find(|setting| setting.key == flag)?.value {
            Value::One(text) => Some(text),
            Value::Switch(_) | Value::List(_) => None,
        }
    }

    /// `file:line:column` of the value that the file sets `flag` to.
    pub fn place_of(&self, flag: &str) -> Option<String> {
        let setting = self.settings.iter().find(|setting| setting.key == flag)?;
        let Place { line, column } = setting.value_place;
        Some(format!("{}:{line}:{column}", self.path.display()))
    }

    /// The settings of the file as arguments of `flags`. A key is left out if its flag, or a flag that excludes it, is
    /// `given` (called with the id of a flag).
    ///
    /// # Errors
    /// [`ConfigFileError::Malformed`] for keys that are not flags, for values that their flag does not take, and for
    /// keys that exclude each other.
    pub fn arguments(&self, flags: &Command, given: &dyn Fn(&str) -> bool) -> Result<Vec<OsString>, ConfigFileError> {
        let mut arguments = Vec::new();
        let mut used: Vec<(&Setting, &Arg)> = Vec::new();
        for setting in &self.settings {
            let flag = self.flag(flags, setting)?;
            let one = self.argument(flags, setting, flag)?;
            if given(flag.get_id().as_str()) || excluded_by(flags, flag).any(given) {
                continue;
            }
            if one.is_empty() {
                continue;
            }
            if let Some((other, _)) = used
                .iter()
                .find(|(_, other)| excluded_by(flags, flag).any(|excluded| excluded == other.get_id().as_str()))
            {
                let why = format!("{} and {} exclude each other; remove one of them", other.key, setting.key);
                return Err(self.malformed(setting.place, why));
            }
            used.push((setting, flag));
            arguments.extend(one);
        }
        Ok(arguments)
    }

    fn malformed(&self, Place { line, column }: Place, why: String) -> ConfigFileError {
        ConfigFileError::Malformed { path: self.path.clone(), line, column, why }
    }

    /// The flag of the key of `setting`.
    fn flag<'a>(&self, flags: &'a Command, setting: &Setting) -> Result<&'a Arg, ConfigFileError> {
        let key = setting.key.as_str();
        if NOT_IN_FILE.contains(&key) {
            let why = format!("{key} says where this file is; set it with --{key} or in the environment");
            return Err(self.malformed(setting.place, why));
        }
        let named = |name: &str| flags.get_arguments().find(|flag| flag.get_long() == Some(name));
        if let Some(flag) = named(key) {
            return Ok(flag);
        }
        let negated = format!("no-{key}");
        let meant = if named(&negated).is_some() { Some(negated) } else { nearest(flags, key) };
        let hint = meant.map_or_else(|| "see pangea node --help".to_owned(), |meant| format!("did you mean {meant}?"));
        Err(self.malformed(setting.place, format!("no setting is called {key}; {hint}")))
    }

    /// The value of `setting` as arguments of its flag, each of them checked by the flag's own parser.
    fn argument(&self, flags: &Command, setting: &Setting, flag: &Arg) -> Result<Vec<OsString>, ConfigFileError> {
        let key = setting.key.as_str();
        let wrong = |place, why: String| Err(self.malformed(place, format!("{key}: {why}")));
        let values = match (&setting.value, flag.get_action()) {
            (Value::Switch(on), ArgAction::SetTrue) => {
                return Ok(on.then(|| format!("--{key}").into()).into_iter().collect());
            }
            (_, ArgAction::SetTrue) => return wrong(setting.value_place, "use true or false".to_owned()),
            (Value::Switch(on), _) => vec![(on.to_string(), setting.value_place)],
            (Value::One(one), _) => vec![(one.clone(), setting.value_place)],
            (Value::List(list), ArgAction::Append) => list.clone(),
            (Value::List(_), _) => return wrong(setting.value_place, "use one value, not a list".to_owned()),
        };
        let folder = self.path.parent().filter(|_| flag.get_value_hint() == ValueHint::AnyPath);
        let mut arguments = Vec::new();
        for (value, place) in values {
            let value = folder.map_or_else(|| value.clone().into(), |folder| folder.join(&value).into_os_string());
            let argument = with_value(key, &value);
            if let Err(error) = flags.clone().try_get_matches_from([&argument]) {
                return wrong(place, reason(&error));
            }
            arguments.push(argument);
        }
        Ok(arguments)
    }
}

/// The ids of the flags that `flag` excludes, and of those that exclude `flag`.
fn excluded_by<'a>(flags: &'a Command, flag: &'a Arg) -> impl Iterator<Item = &'a str> {
    let own = flags.get_arg_conflicts_with(flag).into_iter();
    let others = flags.get_arguments().filter(move |other| {
        flags.get_arg_conflicts_with(other).iter().any(|excluded| excluded.get_id() == flag.get_id())
    });
    own.chain(others).map(|flag| flag.get_id().as_str())
}

/// The name of the flag with the spelling closest to `key`, if any is close.
fn nearest(flags: &Command, key: &str) -> Option<String> {
    let typed = with_value(key, OsStr::new(""));
    let error = flags.clone().try_get_matches_from([typed]).err()?;
    match error.get(ContextKind::SuggestedArg)? {
        ContextValue::String(meant) => Some(meant.trim_start_matches("--").to_owned()),
        _ => None,
    }
}

/// The reason in an error of clap about a value, without the name of the flag.
fn reason(error: &clap::Error) -> String {
    if let Some(source) = std::error::Error::source(error) {
        return source.to_string();
    }
    match error.get(ContextKind::ValidValue) {
        Some(ContextValue::Strings(values)) => format!("use {}", values.join(" or ")),
        _ => error.kind().to_string(),
    }
}

/// A text or a number as it would be written on the command line.
fn single(value: DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Integer(number) => Some(i64::from_str_radix(number.as_str(), number.radix()).ok()?.to_string()),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(_) | DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// Line and column of byte `at` of `text`.
fn place(text: &str, at: usize) -> Place {
    let before = text.get(..at).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Place { line: before.matches('\n').count() + 1, column: before[start..].chars().count() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::raw::flags;

    /// The arguments that the file stands for, or its error.
    fn arguments(text: &str) -> Result<Vec<String>, String> {
        let file = ConfigFile::parse(text, Path::new("/etc/pangea/config.toml")).map_err(|error| error.to_string())?;
        let arguments = file.arguments(&flags(), &|_| false).map_err(|error| error.to_string())?;
        Ok(arguments.into_iter().map(|argument| argument.into_string().unwrap()).collect())
    }

    #[test]
    fn every_flag_is_a_key_of_its_name() {
        let token = pangea_control::membership::Token {
            member: libp2p::PeerId::random(),
            pool: pangea_control::membership::PoolId([1; 32]),
            role: pangea_control::membership::Role::Member,
            expires_unix_s: 1,
            secret: [2; 16],
            addresses: Vec::new(),
        };
        let token = format!("{:?}", token.to_text());
        for flag in flags().get_arguments() {
            let key = flag.get_long().unwrap();
            if NOT_IN_FILE.contains(&key) {
                assert!(arguments(&format!("{key} = \"x\"")).unwrap_err().contains("says where this file is"), "{key}");
                continue;
            }
            let value = match key {
                "listen" | "peer" => "[\"127.0.0.1:7777\", \"/ip4/127.0.0.1/tcp/1\"]",
                "rpc-addr" | "api-addr" => "\"127.0.0.1:0\"",
                "api-port" | "client-rate" | "threads" => "3",
                "audit" | "traces-ratio" => "0.5",
                "traces" => "\"http://127.0.0.1:4318\"",
                "join" => &token,
                "bind" => "\"lan\"",
                "cors" => "[\"https://app.example\", \"*\"]",
                "layers" => "\"0-14\"",
                "max-memory" | "gpu-memory" => "\"2G\"",
                "device" => "\"auto\"",
                "gpu-bits" => "\"own\"",
                "keep-loaded" => "\"30m\"",
                "log-format" => "\"json\"",
                "strategy" => "\"first_valid\"",
                "fault" => "\"hang\"",
                _ if matches!(flag.get_action(), ArgAction::SetTrue) => "true",
                _ => "\"some\"",
            };
            assert!(!arguments(&format!("{key} = {value}\n")).unwrap().is_empty(), "{key}");
        }
    }

    #[test]
    fn a_flag_that_can_be_repeated_takes_a_list_or_a_single_value() {
        assert_eq!(arguments("model = \"m\"").unwrap(), ["--model=m"]);
        assert_eq!(arguments("model = [\"m\", \"n\"]").unwrap(), ["--model=m", "--model=n"]);
        assert_eq!(arguments("no-mdns = true\nsplit = false").unwrap(), ["--no-mdns"]);
        assert_eq!(arguments("max-memory = 1_073_741_824").unwrap(), ["--max-memory=1073741824"]);
        assert_eq!(arguments("threads = 0x10").unwrap(), ["--threads=16"]);
    }

    #[test]
    fn paths_are_relative_to_the_files_folder() {
        assert_eq!(arguments("peers-file = \"p.json\"").unwrap(), ["--peers-file=/etc/pangea/p.json"]);
        assert_eq!(arguments("pool-key = \"/k\"").unwrap(), ["--pool-key=/k"]);
        assert_eq!(arguments("name = \"p.json\"").unwrap(), ["--name=p.json"]);
    }

    #[test]
    fn an_error_names_its_place_and_its_cause() {
        for (text, expected) in [
            ("threads = 2\nthreds = 3\n", "2:1: no setting is called threds; did you mean threads?"),
            ("mdns = false\n", "1:1: no setting is called mdns; did you mean no-mdns?"),
            ("zzz = 1", "1:1: no setting is called zzz; see pangea node --help"),
            ("name = \"é\"\nmax-memory = \"lots\"\n", "2:14: max-memory: 'lots' is not a size"),
            ("max-memory = 5", "1:14: max-memory: products need at least 16.0 MiB"),
            ("listen = [\"127.0.0.1:1\", \"/ip4/nowhere\"]\n", "1:26: listen: '/ip4/nowhere' is not an address"),
            ("rpc-addr = \"localhost\"", "1:12: rpc-addr: use ADDRESS:PORT"),
            ("threads = -1", "1:11: threads: use a whole number from 1 to 4096"),
            ("threads = 0", "1:11: threads: use a whole number from 1 to 4096"),
            ("threads = 2.5", "1:11: threads: use a whole number"),
            ("threads = [1]", "1:11: threads: use one value, not a list"),
            ("audit = 7", "1:9: audit: --audit must be between 0"),
            ("audit = true", "1:9: audit: use a number"),
            ("no-mdns = \"yes\"", "1:11: no-mdns: use true or false"),
            ("log-format = \"xml\"", "1:14: log-format: use text or json"),
            ("model = [[\"m\"]]", "1:10: model: a list holds texts or numbers"),
            ("[model]\nname = 1", "1:1: model: use a text, a number, true, false or a list"),
            ("api-port = 1\napi-addr = \"127.0.0.1:2\"", "2:1: api-port and api-addr exclude each other"),
            ("threads = ", "1:1"),
            ("threads = 1\nthreads = 2", "2:1: "),
        ] {
            let error = arguments(text).unwrap_err();
            let expected = format!("/etc/pangea/config.toml:{expected}");
            assert!(error.starts_with(&expected), "{text}: {error}");
            for word in ["usize", "u16", "sequence", "expected a", "invalid type", "digit found"] {
                assert!(!error.contains(word), "{text}: {error}");
            }
        }
    }

    #[test]
    fn a_key_is_left_out_if_its_flag_or_a_flag_that_excludes_it_is_given() {
        let file = ConfigFile::parse("api-addr = \"127.0.0.1:2\"\nthreads = 3", Path::new("/c")).unwrap();
        let left = |given: &'static str| file.arguments(&flags(), &|id| id == given).unwrap();
        assert_eq!(left("threads"), ["--api-addr=127.0.0.1:2"]);
        assert_eq!(left("api_port"), ["--threads=3"]);
        assert_eq!(left("no_api"), ["--threads=3"]);
        let wrong = ConfigFile::parse("threads = 0", Path::new("/c")).unwrap();
        assert!(wrong.arguments(&flags(), &|_| true).is_err(), "a wrong value is an error even if a flag overrides it");
    }
}
