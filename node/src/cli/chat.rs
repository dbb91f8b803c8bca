//! `pangea chat`: a conversation on the terminal, one answer or many. It asks a running node where there is one, else a
//! model in this process; how either answers is their own business.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use pangea_client::{AnswerStage, ErrorKind};
use pangea_compute::chat::Message;
use pangea_compute::sample::Sampling;
use pangea_control::devices::roomy_sessions_bytes;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde::Serialize;

use super::args::{DataDirArgs, JsonArgs, OutputArgs, api_address};
use super::chat_node::NodeModel;
use super::failure::{Exit, Failure};
use super::progress::Progress;
use super::session::{from_this_host, note};
use super::{print, print_json};
use crate::config;
use crate::config::file::ConfigFile;
use crate::devices::Devices;
use crate::models;
use crate::serve::{Engine, EngineSettings, Event, Prompt, Request};

const EXAMPLES: &str = "\
Examples:
  pangea chat 'What is the capital of France?'
  pangea chat --model SmolLM2-135M-Instruct.Q4_1.gguf
  pangea chat --system 'Answer in one word.' --temperature 0 'Is water wet?'

A running node answers, if there is one (PANGEA_API_KEY holds the key of its
API); otherwise the model runs in this process.";

/// Talk to a model
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ChatArgs {
    /// The question; without one, a conversation until /exit or Ctrl-D
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,

    /// Name of a model, or path of a .gguf file [default: the first model of the node, or the only one of this machine]
    #[arg(short, long, value_name = "MODEL")]
    model: Option<String>,

    /// System message [default: You are a helpful assistant.]
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.2)]
    temperature: f32,

    /// Longest answer in tokens [default: no limit]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,

    /// The same seed gives the same answer, on every machine
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,

    /// HTTP API of the node, as HOST:PORT or a URL such as http://HOST:PORT/v1 [default: that of the node that runs with --data-dir, else 127.0.0.1:52415]
    #[arg(long, value_name = "ADDR", env = "PANGEA_API", hide_env_values = true, value_parser = api_address)]
    api: Option<String>,

    /// Data directory of the node and the models.
    #[command(flatten)]
    data_dir: DataDirArgs,

    /// Compute threads where no node runs [default: fast physical cores]
    #[arg(long, value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,

    /// Form of the result.
    #[command(flatten)]
    json: JsonArgs,
}

/// Default address of a node's HTTP API.
const DEFAULT_API: &str = "127.0.0.1:52415";

/// Default system message: small models keep to the language and the question better with one.
const SYSTEM: &str = "You are a helpful assistant.";

/// The model that answers.
enum ChatModel {
    Node(NodeModel),
    Local(Engine),
}

/// An answer in JSON output.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct ChatAnswer {
    /// Where the answer was computed: `node` or `local`.
    pub(super) place: &'static str,
    pub(super) model: String,
    pub(super) content: String,
    pub(super) finish_reason: String,
    pub(super) prompt_tokens: u64,
    pub(super) answer_tokens: u64,
    /// Seconds from the question to the first text.
    pub(super) first_token_s: f64,
    pub(super) answer_tokens_per_s: f64,
    pub(super) verdict: String,
    /// Nodes and the layers that they computed; empty if this process computed all of them.
    pub(super) stages: Vec<AnswerStage>,
    /// Failovers of the session.
    pub(super) failovers: u64,
    /// Ids of the answer's receipts on the node.
    pub(super) receipts: Vec<String>,
}

/// Options of the generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnswerOptions {
    pub(super) temperature: f32,
    pub(super) max_tokens: Option<usize>,
    pub(super) seed: u64,
}

/// Runs the command on a runtime of its own: Ctrl-C ends an answer, not the conversation.
pub(super) fn run(args: &ChatArgs, output: OutputArgs) -> Result<(), Failure> {
    if args.json.json && args.prompt.is_none() {
        return Err(Failure::usage("--json needs a prompt: it writes one answer"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start an asynchronous runtime: {error}")))?;
    let mut chat = Chat {
        model: runtime.block_on(model(args, output))?,
        options: AnswerOptions { temperature: args.temperature, max_tokens: args.max_tokens, seed: args.seed },
        messages: vec![Message::new("system", args.system.as_deref().unwrap_or(SYSTEM))],
        // Some templates accept no system message; the default one is then left out without an error.
        system_may_go: args.system.is_none(),
        output,
    };
    let result = match &args.prompt {
        Some(prompt) => runtime.block_on(chat.once(prompt, args.json)),
        None => chat.interactive(&runtime),
    };
    // Work of a model in this process must not delay the exit.
    runtime.shutdown_background();
    result
}

/// The model of the named, local or default node, if it serves the model; otherwise the model in this process.
async fn model(args: &ChatArgs, output: OutputArgs) -> Result<ChatModel, Failure> {
    let data_dir = config::data_dir(args.data_dir.data_dir.clone())?;
    let folder = data_dir.join("models");
    let names = args.model.as_deref().map_or_else(Vec::new, |model| models::names_of(&folder, model));
    let running = args.data_dir.running_node().filter(|_| args.api.is_none());
    let address = match (&args.api, &running) {
        (Some(named), _) => Some(named.clone()),
        (None, Some(node)) => node.api.as_deref().map(from_this_host),
        (None, None) => Some(DEFAULT_API.to_owned()),
    };
    if let Some(address) = address {
        let key = std::env::var("PANGEA_API_KEY").ok().filter(|key| !key.is_empty());
        let key = match key {
            None if running.is_some() => ConfigFile::load_if_there(&data_dir.join("config.toml"))
                .ok()
                .and_then(|file| file.text_of("api-key").map(str::to_owned)),
            key => key,
        };
        match NodeModel::find(&address, key, &names).await {
            Ok(node) => return Ok(ChatModel::Node(node)),
            // If a node was named, no other model is tried.
            Err(failure) if args.api.is_some() => return Err(failure),
            // The node of this data directory is running but requires its key: the user does not want the model
            // to be loaded a second time.
            Err(failure) if failure.kind == Some(ErrorKind::Unauthorized) && running.is_some() => {
                return Err(Failure::usage(format!(
                    "the node of {} requires an API key ({failure}); set PANGEA_API_KEY",
                    data_dir.display()
                )));
            }
            Err(_) => {}
        }
    }
    let (name, path) = match args.model.as_deref() {
        Some(model) => (models::name_of(model).to_owned(), models::resolve(&folder, model)?),
        None => the_only_model(&folder)?,
    };
    note(&output, format!("No node serves {name}: answering in this process."));
    let threads = config::threads(args.threads);
    let devices = Devices::new(config::max_memory(None), threads);
    let settings = EngineSettings::new(roomy_sessions_bytes(devices.limit()));
    let _progress = Progress::waiting(&output, args.json, "loading");
    Ok(ChatModel::Local(Engine::load(&name, &path, &devices, settings, None)?))
}

fn the_only_model(folder: &std::path::Path) -> Result<(String, PathBuf), Failure> {
    let mut found = models::installed(folder);
    match (found.pop(), found.len()) {
        (Some(model), 0) => Ok(model),
        (None, _) => {
            let folder = folder.display();
            Err(Failure::usage(format!(
                "no model in {folder}, and no node serves one; download one with `pangea models pull smollm2`, or name a .gguf file with --model"
            )))
        }
        (Some(last), _) => {
            found.push(last);
            let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
            Err(Failure::usage(format!(
                "this machine has several models; choose one with --model: {}",
                names.join(", ")
            )))
        }
    }
}

struct Chat {
    model: ChatModel,
    options: AnswerOptions,
    messages: Vec<Message>,
    system_may_go: bool,
    output: OutputArgs,
}

impl Chat {
    /// Answers the conversation so far.
    async fn answer(&mut self, print_text: &mut dyn FnMut(&str) -> Result<(), Failure>) -> Result<ChatAnswer, Failure> {
        let answered = self.model.answer(&self.messages, self.options, print_text).await;
        match answered {
            Err(failure) if failure.exit == Exit::Usage && self.system_may_go => {
                self.system_may_go = false;
                let system = self.messages.remove(0);
                let again = self.model.answer(&self.messages, self.options, print_text).await;
                if again.is_err() {
                    self.messages.insert(0, system);
                }
                again
            }
            answered => {
                self.system_may_go &= answered.is_err();
                answered
            }
        }
    }

    /// Answers one prompt; Ctrl-C interrupts.
    async fn once(&mut self, prompt: &str, json: JsonArgs) -> Result<(), Failure> {
        self.messages.push(Message::new("user", prompt));
        let mut waiting = Some(Progress::waiting(&self.output, json, "waiting"));
        let mut print_text = |text: &str| {
            if json.json {
                return Ok(());
            }
            waiting.take();
            print(text)
        };
        let answer = tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => return Err(Failure::new(Exit::Interrupted, "stopped")),
            answer = self.answer(&mut print_text) => answer?,
        };
        if json.json {
            return print_json(&answer);
        }
        drop(waiting);
        print("\n")?;
        self.closing_line(&answer);
        Ok(())
    }

    /// Answers lines from the terminal or another standard input until it ends.
    fn interactive(&mut self, runtime: &tokio::runtime::Runtime) -> Result<(), Failure> {
        let unusable = |error: ReadlineError| Failure::failed(format!("cannot read from the terminal: {error}"));
        let mut editor = DefaultEditor::new().map_err(unusable)?;
        let prompt = if std::io::stdin().is_terminal() { "> " } else { "" };
        let name = self.model.name().to_owned();
        note(
            &self.output,
            format!("{name}. /exit or Ctrl-D ends the conversation, Ctrl-C an answer; /clear starts a new one."),
        );
        loop {
            let line = match editor.readline(prompt) {
                Ok(line) => line,
                Err(ReadlineError::Interrupted) => continue,
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(unusable(error)),
            };
            match line.trim() {
                "" => continue,
                "/exit" | "/quit" => return Ok(()),
                "/clear" => self.messages.retain(|message| message.role == "system"),
                said => {
                    // A line that cannot be added to the history is still answered.
                    let _ = editor.add_history_entry(said);
                    self.turn(runtime, said)?;
                }
            }
        }
    }

    /// Answers one question. A question that fails is reported and removed from the conversation.
    fn turn(&mut self, runtime: &tokio::runtime::Runtime, said: &str) -> Result<(), Failure> {
        self.messages.push(Message::new("user", said));
        let mut heard = String::new();
        let mut waiting = Some(Progress::waiting(&self.output, JsonArgs::default(), "waiting"));
        let mut print_text = |text: &str| {
            waiting.take();
            heard.push_str(text);
            print(text)
        };
        let outcome = runtime.block_on(async {
            tokio::select! {
                biased;
                _ = tokio::signal::ctrl_c() => None,
                answer = self.answer(&mut print_text) => Some(answer),
            }
        });
        drop(waiting);
        print("\n")?;
        match outcome {
            None => {
                note(&self.output, "(stopped)");
                self.messages.push(Message::new("assistant", heard));
            }
            Some(Ok(answer)) => {
                self.closing_line(&answer);
                self.messages.push(Message::new("assistant", answer.content));
            }
            Some(Err(failure)) => {
                note(&self.output, format!("error: {failure}"));
                self.messages.pop();
            }
        }
        Ok(())
    }

    fn closing_line(&self, answer: &ChatAnswer) {
        let cut = if answer.finish_reason == "length" { ", cut at its limit" } else { "" };
        let line = format!(
            "[{} tokens, {:.0} tokens/s, first after {:.2} s{cut}]",
            answer.answer_tokens, answer.answer_tokens_per_s, answer.first_token_s
        );
        // The answer is on standard output: its last line must appear before this one.
        let _ = std::io::stdout().flush();
        note(&self.output, line);
    }
}

impl ChatModel {
    fn name(&self) -> &str {
        match self {
            ChatModel::Node(node) => &node.model,
            ChatModel::Local(engine) => &engine.model().name,
        }
    }

    async fn answer(
        &self,
        messages: &[Message],
        options: AnswerOptions,
        print_text: &mut dyn FnMut(&str) -> Result<(), Failure>,
    ) -> Result<ChatAnswer, Failure> {
        match self {
            ChatModel::Node(node) => node.answer(messages, options, print_text).await,
            ChatModel::Local(engine) => answer_locally(engine, messages, options, print_text).await,
        }
    }
}

/// An answer of the model in this process.
async fn answer_locally(
    engine: &Engine,
    messages: &[Message],
    options: AnswerOptions,
    print_text: &mut dyn FnMut(&str) -> Result<(), Failure>,
) -> Result<ChatAnswer, Failure> {
    let asked = Instant::now();
    let request = Request {
        sampling: Sampling { temperature: options.temperature, seed: options.seed, ..Sampling::default() },
        max_tokens: options.max_tokens,
        ..Request::new(Prompt::chat(messages.to_vec()))
    };
    let mut generation = engine.generate(request).await.map_err(|refused| refused.error)?;
    let mut answer = ChatAnswer {
        place: "local",
        model: engine.model().name.clone(),
        verdict: "local".to_owned(),
        ..ChatAnswer::default()
    };
    let mut first = Duration::ZERO;
    while let Some(event) = generation.next().await {
        match event? {
            Event::Prefill(_) | Event::Prompt(_) => {}
            Event::Delta(delta) => {
                if first.is_zero() {
                    first = asked.elapsed();
                }
                print_text(&delta.text)?;
                answer.content.push_str(&delta.text);
                answer.finish_reason = delta.finish.map_or_else(String::new, |finish| finish.name().to_owned());
            }
            Event::Done(summary) => {
                answer.prompt_tokens = summary.prompt_tokens as u64;
                answer.answer_tokens = summary.answer_tokens as u64;
                answer.answer_tokens_per_s = summary.answer_tokens_per_s();
            }
        }
    }
    answer.first_token_s = first.as_secs_f64();
    Ok(answer)
}
