//! `pangea top`: a live view of a node's pool. This file owns the terminal and asks the node; [`top_state`](super::top_state) is what
//! is known, [`top_view`](super::top_view) what is shown.

use std::io::{self, IsTerminal, Stdout, stdin, stdout};
use std::time::{Duration, Instant, SystemTime};

use clap::Args;
use crossterm::cursor::Show;
use crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::execute;
use crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode};
use pangea_client::{Client, ModelPlan};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::widgets::Paragraph;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use super::args::{RpcArgs, duration};
use super::failure::{Exit, Failure};
use super::top_state::{Event, Next, Snapshot, SortKey, State};
use super::top_view::{Theme, lines};
use super::{block_on, terminal, topology};

/// Watch a node's pool: nodes, jobs and their speeds, live
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct TopArgs {
    /// Time between two questions to the node
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    interval: Duration,

    /// Which node.
    #[command(flatten)]
    rpc: RpcArgs,

    /// Panics after this many screens, so that tests can show that the terminal is restored
    #[arg(long, value_name = "N", hide = true)]
    panic_after: Option<u64>,
}

const EXAMPLES: &str = "\
Keys:
  n m t u r b   sort by name, memory, tokens/s, trust, round trip, link;
                the same key again reverses the order
  ↑ ↓           scroll the nodes
  q, Ctrl-C     leave

TOK/S are the tokens of this node's answers that pass through a node, LINK the
measured bytes per second to it, * marks the master. A node that goes away is
asked again until it is back.

Examples:
  pangea top
  pangea top --rpc mac2.local:8080 --interval 5s
  pangea status --json                  for programs, and without a terminal";

/// Time for the node to answer; a node that takes longer counts as lost.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Shortest time between two questions where models are placed: a plan costs the node more than a status.
const PLAN_INTERVAL: Duration = Duration::from_secs(5);

/// Keys, and answers, that wait to be drawn; whoever has more waits for the screen.
const QUEUE: usize = 16;

pub(super) fn run(args: TopArgs) -> Result<(), Failure> {
    if !stdin().is_terminal() || !terminal::redraws(&stdout()) {
        let why = match stdin().is_terminal() && stdout().is_terminal() {
            true => "the terminal cannot move its cursor (see TERM)",
            false => "standard input or output is not a terminal",
        };
        return Err(Failure::usage(format!("pangea top draws on a terminal: {why}; use `pangea status --json`")));
    }
    match block_on(watch(args)) {
        // A signal leaves the view as `q` does: there is no result that could be missing.
        Err(failure) if failure.exit == Exit::Interrupted => Ok(()),
        result => result,
    }
}

async fn watch(args: TopArgs) -> Result<(), Failure> {
    // Before the screen is taken, so that a failure can be read.
    let client = args.rpc.node().await?;
    let mut state = State::new(args.rpc.address());
    let theme = Theme { colours: terminal::colours(&stdout()) };
    let mut screen = Screen::open()?;
    let mut keys = keys();
    let (answered, mut answers) = mpsc::channel(QUEUE);
    tokio::task::spawn_local(ask(args.rpc, client, args.interval, answered));
    let mut drawn = 0;
    loop {
        let happened = tokio::select! {
            biased;
            key = keys.recv() => key.unwrap_or_else(|| Err(Failure::failed("cannot read keys from the terminal")))?,
            answer = answers.recv() => {
                answer.ok_or_else(|| Failure::failed("the part of `pangea top` that asks the node has ended"))?
            }
        };
        if state.handle(happened) == Next::Leave {
            return Ok(());
        }
        screen.draw(&state, theme)?;
        drawn += 1;
        if args.panic_after == Some(drawn) {
            panic!("panic injected after screen {drawn}");
        }
    }
}

/// Asks the node again and again, until nobody listens. A node that is lost is looked for as at the start.
async fn ask(rpc: RpcArgs, client: Client, interval: Duration, answers: mpsc::Sender<Event>) {
    let opened = Instant::now();
    let mut node = Node { client: Some(client), plans: Vec::new(), models: Vec::new(), planned: None };
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let event = match tokio::time::timeout(ANSWER_TIMEOUT, node.snapshot(&rpc)).await {
            Ok(Ok(snapshot)) => Event::Answered(Box::new(snapshot), opened.elapsed()),
            Ok(Err(failure)) => Event::Lost(failure.message),
            Err(_) => Event::Lost(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
        };
        if matches!(event, Event::Lost(_)) {
            node.client = None;
        }
        if answers.send(event).await.is_err() {
            return;
        }
    }
}

/// The node, and what is asked of it less often.
struct Node {
    client: Option<Client>,
    /// Names of the models that the pool serves, and when their placements were asked for.
    models: Vec<String>,
    planned: Option<Instant>,
    plans: Vec<ModelPlan>,
}

impl Node {
    /// The same answers as `pangea status`, `peers`, `topology`, `jobs` and `models plan` give.
    async fn snapshot(&mut self, rpc: &RpcArgs) -> Result<Snapshot, Failure> {
        let client = match &self.client {
            Some(client) => client.clone(),
            None => rpc.node().await?,
        };
        self.client = Some(client.clone());
        let topology = client.topology().await?;
        let models = topology::served(&topology);
        if models != self.models || self.planned.is_none_or(|at| at.elapsed() >= PLAN_INTERVAL) {
            self.plans = topology::plans(&client, &models).await;
            (self.models, self.planned) = (models, Some(Instant::now()));
        }
        Ok(Snapshot {
            status: client.status().await?,
            peers: client.peers().await?,
            jobs: client.jobs().await?,
            topology,
            plans: self.plans.clone(),
            // A clock before 1970 only loses the mean rates of jobs that ran before the view was opened.
            unix_ms: SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64),
        })
    }
}

/// What a person types, and changes of the terminal's size; ends where the terminal cannot be read.
fn keys() -> mpsc::Receiver<Result<Event, Failure>> {
    let (typed, keys) = mpsc::channel(QUEUE);
    // The thread waits for a key until the process ends.
    std::thread::spawn(move || {
        loop {
            let event = match event::read() {
                Ok(Input::Key(key)) => meaning(key).map(Ok),
                Ok(Input::Resize(..)) => Some(Ok(Event::Resized)),
                Ok(_) => None,
                Err(error) => Some(Err(Failure::failed(format!("cannot read keys from the terminal: {error}")))),
            };
            let Some(event) = event else { continue };
            let is_last = event.is_err();
            if typed.blocking_send(event).is_err() || is_last {
                return;
            }
        }
    });
    keys
}

/// What a key asks for.
fn meaning(key: KeyEvent) -> Option<Event> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    Some(match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Event::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Event::Quit,
        KeyCode::Char('n') => Event::Sort(SortKey::Name),
        KeyCode::Char('m') => Event::Sort(SortKey::Memory),
        KeyCode::Char('t') => Event::Sort(SortKey::Tokens),
        KeyCode::Char('u') => Event::Sort(SortKey::Trust),
        KeyCode::Char('r') => Event::Sort(SortKey::Rtt),
        KeyCode::Char('b') => Event::Sort(SortKey::Link),
        KeyCode::Down | KeyCode::Char('j') => Event::Scroll { down: true },
        KeyCode::Up | KeyCode::Char('k') => Event::Scroll { down: false },
        _ => return None,
    })
}

/// The terminal while the view has it: raw, on its other screen. Dropping gives it back; a panic does so before it is reported.
struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    fn open() -> Result<Screen, Failure> {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            give_back();
            report(panic);
        }));
        let opened = enable_raw_mode()
            .and_then(|()| execute!(stdout(), EnterAlternateScreen))
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match opened {
            Ok(terminal) => Ok(Screen { terminal }),
            Err(error) => {
                give_back();
                Err(cannot_draw(&error))
            }
        }
    }

    fn draw(&mut self, state: &State, theme: Theme) -> Result<(), Failure> {
        let drawn = self.terminal.draw(|frame| {
            let area = frame.area();
            frame.render_widget(Paragraph::new(lines(state, area.width.into(), area.height.into(), theme)), area);
        });
        drawn.map(drop).map_err(|error| cannot_draw(&error))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Restores the terminal. Nothing can be done where that fails: the terminal is gone.
fn give_back() {
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

fn cannot_draw(error: &io::Error) -> Failure {
    Failure::failed(format!("cannot draw on the terminal: {error}"))
}
