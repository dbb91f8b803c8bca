//! Every limit of planning and scheduling, each with its reason.
//! The limits are constants, never read from the environment.

use std::time::Duration;

/// Tiles start and end on multiples of this: whole kernel blocks for every type and instruction set.
pub const TILE_ALIGNMENT: u64 = 64;
/// Minimum side of a tile: narrower ones spend more on packing and headers than on arithmetic.
pub const TILE_SIDE_MIN: u64 = 128;
/// Target seconds of a tile on the slowest useful worker: long compared with a round trip and a hand-over, short
/// compared with the job, so that the last tile costs little.
pub const TILE_SECONDS: f64 = 0.035;
/// Minimum seconds of a tile: a shorter one is mostly fixed cost.
pub const TILE_SECONDS_MIN: f64 = 0.002;
/// Minimum seconds of a tile on the fastest worker, for the same reason.
pub const TILE_SECONDS_FASTEST_MIN: f64 = 0.001;
/// Minimum length of a tile, as a multiple of a task's fixed cost.
pub const TILE_OVERHEADS_MIN: f64 = 12.0;
/// Tiles per worker: with this many, the last one leaves at most 1/12 of a share out of balance.
pub const TILES_PER_WORKER: u64 = 12;
/// Maximum seconds of a job without peers that stays one tile, without packing ahead or merging.
pub const WHOLE_SECONDS: f64 = 1.5;
/// Maximum seconds of a tile on this node, for longer jobs: progress is visible, urgent jobs pass, and a late peer can help.
/// With peers no tile takes this node longer either, because it may have to compute any of them.
pub const TILE_SECONDS_ALONE: f64 = 0.250;
/// Minimum speed, as a share of the fastest worker's, with which a worker influences the size of tiles.
pub const USEFUL_SHARE: f64 = 0.08;
/// Maximum time of a worker's first tile, as a share of the whole job on one worker, with which the worker influences
/// that size.
pub const USEFUL_START: f64 = 0.5;
/// Maximum bytes of a band or panel, so that one operand can always be sent, hashed and held beside others.
pub const OPERAND_BYTES_MAX: u64 = 256 << 20;
/// Maximum share of a worker's memory per tile: it holds the operands of the running and the next tile, and both
/// answers.
pub const TILE_MEMORY_SHARE: u64 = 4;
/// Maximum tiles of a job. Waiting tiles take a quarter of a byte each, and a choice examines every band and panel:
/// this keeps the former under a MiB and the latter under a millisecond, short compared with tiles of such a job.
pub const TILES_MAX: u64 = 1 << 21;

/// Additions and multiplications of an f32 product in the time in which an elementwise operation moves one byte of operands
/// or result: some 200 · 10⁹ and 12 · 10⁹ per second on the machines of DESIGN §8. A first estimate, which
/// measurements replace.
pub const FLOPS_PER_BYTE: f64 = 16.0;

/// Default maximum of attempts in flight at a peer: enough to hide the transfer of an operand on a slow
/// link behind tiles that need none.
pub const IN_FLIGHT_MAX: usize = 16;
/// Attempts in flight on this node: one runs, the next is ready when it ends.
pub const IN_FLIGHT_LOCAL: usize = 2;
/// Bytes of panels and a band that this node's executor keeps packed at a time; below its own limit, because packed halves
/// are widened.
pub const LOCAL_GROUP_BYTES: u64 = 44 << 20;
/// The same as a share of operands and product: beside them a node may use a quarter, part of which answers take.
pub const LOCAL_GROUP_SHARE: u64 = 8;
/// Maximum operand and answer bytes in flight at one peer, unless one tile alone is larger: limits what is queued on a
/// connection and what its loss costs.
pub const IN_FLIGHT_BYTES_MAX: u64 = 512 << 20;
/// Tiles queued beyond the running one, so that a late message does not leave a worker idle.
pub const PREFETCH_TILES: f64 = 2.0;
/// Factor by which a transfer may exceed its prediction before it leaves a worker idle.
pub const PREFETCH_MARGIN: f64 = 1.5;

/// Predicted time of an offloaded job, as a share of the time on this node alone, above which the job stays on this node:
/// predictions are off by about the rest.
pub const OFFLOAD_TIME_SHARE: f64 = 0.88;
/// Weight of one job in the offload history of its class.
pub const OFFLOAD_LEARN_WEIGHT: f64 = 0.3;
/// Share of the history that each job kept on this node forgets: offloading is tried again after some ten jobs.
pub const OFFLOAD_FORGET_WEIGHT: f64 = 0.05;
/// Maximum ratio of one job's actual to its predicted time in the history: a peer may have died during it.
pub const OFFLOAD_RATIO_MAX: f64 = 2.0;

/// Time that a job for peers waits for peers that are connecting (DESIGN §4.1).
pub const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Silence after an attempt was due, after which it counts as failed (DESIGN §7).
pub const SILENCE: Duration = Duration::from_secs(5);
/// The same for long attempts, as a multiple of their predicted time.
pub const SILENCE_FACTOR: f64 = 4.0;
/// Maximum silence of an attempt, however slow its worker says that it is: a tile is cut to take well under a second on
/// a useful worker, and one that takes minutes holds a job that this node could finish.
pub const SILENCE_MAX: Duration = Duration::from_secs(300);
/// Factor over its prediction at which an attempt is late, so that another worker may take it, too.
pub const LATE_FACTOR: f64 = 1.6;
/// Lateness in seconds below which it is noise of threads and timers.
pub const LATE_SLACK: f64 = 0.005;
/// Expected remaining time of a late attempt, as a share of its elapsed time: its prediction was wrong once
/// and is probably wrong for the rest.
pub const LATE_REST: f64 = 0.5;
/// Share of its own time by which a copy elsewhere must be done sooner; otherwise it is wasted work.
pub const HEDGE_MARGIN: f64 = 0.15;
/// Maximum copies of one task at a time, beyond redundancy.
pub const HEDGES_MAX: usize = 1;

/// Overloads of a peer after which a tile goes elsewhere: with the pauses below, some seconds.
pub const OVERLOADS_MAX: u32 = 8;
/// Overloads of this node after which a job fails, because no worker is left: with the pauses below, a minute.
pub const OVERLOADS_LOCAL_MAX: u32 = 36;
/// First pause after a worker reported an overload; doubles up to the maximum.
pub const OVERLOAD_PAUSE: Duration = Duration::from_millis(25);
/// Maximum pause after overloads.
pub const OVERLOAD_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Maximum pause that an overloaded worker may ask for: as long as the pause after failures.
pub const RETRY_AFTER_MAX: Duration = FAILURE_PAUSE_MAX;
/// First pause after a worker failed; doubles up to the maximum.
pub const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// Maximum pause after failures.
pub const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Consecutive failures after which no job waits for a worker any more, though it is still tried.
pub const FAILURES_MAX: u32 = 3;

/// Jobs that ended last whose workers are remembered, in case one of them is convicted: as many as the registry of
/// jobs lists.
pub const DELIVERED_KEPT: usize = crate::jobs::registry::HISTORY;

/// Maximum jobs with waiting tiles that are considered per event: limits the cost of a queue of thousands.
pub const JOBS_CONSIDERED: usize = 128;
/// Consecutive jobs that gain nothing from a worker, after which it is left idle: the next job will hardly gain.
pub const REFUSALS_MAX: usize = 8;
/// Head start of short jobs: among jobs of one priority, a job is ordered by its submission plus this multiple of its
/// length. Short jobs pass long ones, and every job runs eventually.
pub const AGING_FACTOR: f64 = 4.0;

/// Weight of a new observation against all earlier ones.
pub const LEARN_WEIGHT: f64 = 0.25;
/// Weight of the first observation against an advert, and of a second consecutive surprise.
pub const LEARN_WEIGHT_FAST: f64 = 0.6;
/// Maximum factor by which one observation counts as deviating from the expectation.
pub const SURPRISE_MAX: f64 = 4.0;
/// Factor beyond which an observation is a surprise.
pub const SURPRISE: f64 = 1.8;
/// Minimum seconds of a computation that is learned from: shorter ones measure the fixed cost.
pub const LEARN_SECONDS_MIN: f64 = 0.000_5;
/// Minimum bytes of a transfer that is learned from: smaller ones measure the round trip.
pub const LEARN_BYTES_MIN: u64 = 64 << 10;

/// Bytes of operands per second that a worker compares with their digests, once they have arrived: BLAKE3 on one thread of a
/// machine of these years.
pub const HASH_BYTES_PER_S: f64 = 4e9;

/// Bytes of operands and answer that a check processes per second, before one has been timed.
pub const CHECK_BYTES_PER_S: f64 = 8e9;

/// Maximum cost of checking a tile, as a share of computing it on this node.
pub const CHECK_SHARE: f64 = 0.08;
/// Cost of a tile's check, as a share of computing it, from which the tile stays on this node: offloading gains almost
/// nothing.
pub const CHECK_SHARE_MAX: f64 = 0.5;

const _: () = assert!(CHECK_SHARE < CHECK_SHARE_MAX);
const _: () = assert!(TILE_SIDE_MIN.is_multiple_of(TILE_ALIGNMENT));
const _: () = assert!(TILE_SECONDS_MIN < TILE_SECONDS && TILE_SECONDS < TILE_SECONDS_ALONE);
const _: () = assert!(TILE_SECONDS_ALONE < WHOLE_SECONDS);
const _: () = assert!(IN_FLIGHT_LOCAL >= 1 && IN_FLIGHT_MAX >= 2);
const _: () = assert!(LATE_FACTOR > 1.0 && SILENCE_FACTOR > LATE_FACTOR);
const _: () = assert!(SILENCE.as_nanos() < SILENCE_MAX.as_nanos());
const _: () = assert!(SURPRISE < SURPRISE_MAX);
const _: () = assert!(CONNECT_WAIT.as_nanos() < SILENCE.as_nanos());
