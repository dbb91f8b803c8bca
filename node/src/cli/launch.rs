//! `pangea launch CLIENT`: starts a program that people already use against this node. What a client needs to know is given in its
//! environment and its arguments; its own settings files are neither read nor written.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::args::{DataDirArgs, JsonArgs, OutputArgs, api_address};
use super::chat_node::NodeModel;
use super::failure::Failure;
use super::session::{from_this_host, note};
use super::{print, print_json};
use crate::config;
use crate::storage::whole_file;

const EXAMPLES: &str = "\
Examples:
  pangea launch codex
  pangea launch claude --model smollm2
  pangea launch aider -- --no-git main.py
  pangea launch opencode --print";

/// Address of the HTTP API without `--api` and without a running node.
const DEFAULT_API: &str = "127.0.0.1:52415";

/// What clients are told where the node requires no key: most insist on one.
const NO_KEY: &str = "pangea";

/// Start a coding agent or a chat program against this node, touching none of its settings
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct LaunchArgs {
    /// The client
    #[arg(value_name = "CLIENT", value_enum)]
    client: Client,
    /// Arguments for the client
    #[arg(value_name = "ARGS", last = true)]
    arguments: Vec<String>,
    /// Model that the client uses [default: the first that the node serves]
    #[arg(short, long, value_name = "NAME")]
    model: Option<String>,
    /// HTTP API of the node: HOST:PORT or a URL; PANGEA_API_KEY holds its key [default: that of the node that runs with
    /// --data-dir, else 127.0.0.1:52415]
    #[arg(long, value_name = "ADDR", value_parser = api_address)]
    api: Option<String>,
    /// Show what would be set and started, as shell commands, and start nothing
    #[arg(long)]
    print: bool,
    /// Where the node is.
    #[command(flatten)]
    folder: DataDirArgs,
    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// The clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Client {
    /// OpenAI's Codex CLI
    Codex,
    /// Anthropic's Claude Code
    Claude,
    /// OpenCode
    Opencode,
    /// Aider
    Aider,
    /// Simon Willison's llm
    Llm,
    /// Open WebUI
    OpenWebui,
}

/// What is started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Launch {
    program: &'static str,
    /// Environment variables besides those of this process.
    environment: Vec<(&'static str, String)>,
    arguments: Vec<String>,
    /// A file of this node, not of the client: its name below the data directory, and its content.
    file: Option<(&'static str, String)>,
}

impl Client {
    /// How to install the client.
    fn advice(self) -> &'static str {
        match self {
            Client::Codex => "npm install -g @openai/codex",
            Client::Claude => "npm install -g @anthropic-ai/claude-code",
            Client::Opencode => "npm install -g opencode-ai",
            Client::Aider => "pip install aider-chat",
            Client::Llm => "pip install llm",
            Client::OpenWebui => "pip install open-webui",
        }
    }

    /// The client against the node at `api` (`HOST:PORT`). `folder`: the node's data directory.
    fn launch(self, api: &str, key: &str, model: &str, folder: &Path) -> Launch {
        let (root, v1) = (format!("http://{api}"), format!("http://{api}/v1"));
        let key = || key.to_owned();
        match self {
            Client::Codex => {
                let text = |text: &str| json!(text).to_string();
                // TOML's basic strings are written as JSON's are.
                let provider = format!(
                    "model_providers.pangea={{name={}, base_url={}, env_key={}, wire_api={}}}",
                    text("Pangea"),
                    text(&v1),
                    text("PANGEA_API_KEY"),
                    text("responses"),
                );
                let settings =
                    [provider, format!("model_provider={}", text("pangea")), format!("model={}", text(model))];
                Launch {
                    program: "codex",
                    environment: vec![("PANGEA_API_KEY", key())],
                    arguments: settings.into_iter().flat_map(|setting| ["-c".to_owned(), setting]).collect(),
                    file: None,
                }
            }
            Client::Claude => {
                let models = [
                    "ANTHROPIC_MODEL",
                    "ANTHROPIC_DEFAULT_OPUS_MODEL",
                    "ANTHROPIC_DEFAULT_SONNET_MODEL",
                    "ANTHROPIC_DEFAULT_HAIKU_MODEL",
                    "CLAUDE_CODE_SUBAGENT_MODEL",
                ];
                let mut environment = vec![("ANTHROPIC_BASE_URL", root), ("ANTHROPIC_AUTH_TOKEN", key())];
                environment.extend(models.map(|name| (name, model.to_owned())));
                environment.push(("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1".to_owned()));
                Launch { program: "claude", environment, ..Launch::default() }
            }
            Client::Opencode => {
                let options = json!({"baseURL": v1, "apiKey": key()});
                let provider = json!({"npm": "@ai-sdk/openai-compatible", "name": "Pangea", "options": options, "models": {model: {"name": model}}});
                let settings = json!({
                    "$schema": "https://opencode.ai/config.json", "provider": {"pangea": provider},
                    "model": format!("pangea/{model}"), "small_model": format!("pangea/{model}"),
                });
                let environment = vec![("OPENCODE_CONFIG_CONTENT", settings.to_string())];
                Launch { program: "opencode", environment, ..Launch::default() }
            }
            Client::Aider => Launch {
                program: "aider",
                environment: vec![("OPENAI_API_BASE", v1), ("OPENAI_API_KEY", key())],
                arguments: vec!["--model".to_owned(), format!("openai/{model}"), "--no-show-model-warnings".to_owned()],
                file: None,
            },
            Client::Llm => {
                let models = json!([{
                    "model_id": model, "model_name": model, "api_base": v1, "api_key_name": "pangea",
                    "supports_tools": true, "supports_schema": true,
                }]);
                let home = folder.join("launch").join("llm").display().to_string();
                let environment =
                    vec![("LLM_USER_PATH", home), ("LLM_MODEL", model.to_owned()), ("OPENAI_API_KEY", key())];
                // YAML reads JSON.
                let file = Some(("launch/llm/extra-openai-models.yaml", models.to_string()));
                Launch { program: "llm", environment, arguments: Vec::new(), file }
            }
            Client::OpenWebui => Launch {
                program: "open-webui",
                environment: vec![
                    ("OPENAI_API_BASE_URL", v1),
                    ("OPENAI_API_KEY", key()),
                    ("ENABLE_OLLAMA_API", "false".to_owned()),
                    ("DEFAULT_MODELS", model.to_owned()),
                    ("DATA_DIR", folder.join("launch").join("open-webui").display().to_string()),
                ],
                arguments: vec!["serve".to_owned()],
                file: None,
            },
        }
    }
}

pub(super) async fn run(args: LaunchArgs, output: OutputArgs) -> Result<(), Failure> {
    let folder = config::data_dir(args.folder.data_dir.clone()).map_err(|error| Failure::usage(error.to_string()))?;
    let running = args.folder.running_node().and_then(|node| node.api);
    let api = args.api.clone().or(running).map_or_else(|| DEFAULT_API.to_owned(), |api| from_this_host(&api));
    let key = std::env::var("PANGEA_API_KEY").ok().filter(|key| !key.is_empty());
    let model = match &args.model {
        Some(model) => model.clone(),
        None => NodeModel::find(&api, key.clone(), &[]).await?.model,
    };
    let mut launch = args.client.launch(&api, key.as_deref().unwrap_or(NO_KEY), &model, &folder);
    launch.arguments.extend(args.arguments);
    if args.json.json {
        let environment: serde_json::Map<_, _> =
            launch.environment.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let command: Vec<&str> =
            std::iter::once(launch.program).chain(launch.arguments.iter().map(String::as_str)).collect();
        return print_json(&json!({"environment": environment, "command": command}));
    }
    if args.print {
        return print(&shell(&launch));
    }
    if let Some((name, content)) = &launch.file {
        let path = folder.join(name);
        let write = || {
            path.parent().map_or(Ok(()), whole_file::private_folder)?;
            whole_file::replace(&path, content.as_bytes())
        };
        write().map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
    }
    note(&output, format!("Starting {} with {model} at http://{api}", launch.program));
    // Replaces this process: the client has the terminal and its signals for itself.
    let error = Command::new(launch.program).args(&launch.arguments).envs(launch.environment).exec();
    Err(match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::failed(format!("{} is not installed; install it with: {}", launch.program, args.client.advice()))
        }
        _ => Failure::failed(format!("cannot start {}: {error}", launch.program)),
    })
}

/// What is started, as commands for a POSIX shell.
fn shell(launch: &Launch) -> String {
    let mut text = String::new();
    if let Some((name, content)) = &launch.file {
        text.push_str(&format!("# in the data directory of the node: {name}\n# {content}\n"));
    }
    for (name, value) in &launch.environment {
        text.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    text.push_str(launch.program);
    for argument in &launch.arguments {
        text.push(' ');
        text.push_str(&quoted(argument));
    }
    text.push('\n');
    text
}

/// A word for a POSIX shell.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_gets_the_address_the_key_and_the_model_without_a_file_of_its_own() {
        for client in Client::value_variants() {
            let launch = client.launch("127.0.0.1:9", "secret", "m 1", Path::new("/data"));
            let text = shell(&launch);
            for wanted in ["http://127.0.0.1:9", "secret", "m 1"] {
                assert!(text.contains(wanted), "{client:?} lacks {wanted}: {text}");
            }
            assert!(launch.file.is_none_or(|(name, _)| name.starts_with("launch/")));
        }
    }

    #[test]
    fn what_is_printed_can_be_pasted_into_a_shell() {
        let launch = Client::Codex.launch("127.0.0.1:9", "it's", "m", Path::new("/data"));
        let expected = "export PANGEA_API_KEY='it'\\''s'\ncodex -c 'model_providers.pangea={name=\"Pangea\", base_url=\"http://127.0.0.1:9/v1\", \
            env_key=\"PANGEA_API_KEY\", wire_api=\"responses\"}' -c 'model_provider=\"pangea\"' -c 'model=\"m\"'\n";
        assert_eq!(shell(&launch), expected);
    }
}
