//! Every number that bounds planning or scheduling, each with its reason.
//! Never read from the environment or changed at run time.

use std::time::Duration;

/// Tiles start and end on multiples of this: whole kernel blocks for every type and instruction set.
pub const TILE_ALIGNMENT: u64 = 64;
/// Narrower tiles spend more on packing and headers than on arithmetic.
pub const TILE_SIDE_MIN: u64 = 128;
/// What one tile should take on the slowest useful worker: long against a round trip and a hand-over, short
/// against the job, so that the last tile of a job costs little.
pub const TILE_SECONDS: f64 = 0.035;
/// A tile shorter than this is mostly fixed cost.
pub const TILE_SECONDS_MIN: f64 = 0.002;
/// What one tile takes at least on the fastest worker, for the same reason.
pub const TILE_SECONDS_FASTEST_MIN: f64 = 0.001;
/// A tile takes at least this many times a task's fixed cost.
pub const TILE_OVERHEADS_MIN: f64 = 12.0;
/// So many tiles for each worker leave the last one at most 1/12 of a share out of balance.
pub const TILES_PER_WORKER: u64 = 12;
/// Without peers a job no longer than this is one tile, which needs no packing ahead and no merging.
pub const WHOLE_SECONDS: f64 = 1.5;
/// A longer one is still cut, so that progress shows, urgent jobs pass and a peer that comes late can help. With peers
/// no tile takes this node longer either: it may have to do any of them itself.
pub const TILE_SECONDS_ALONE: f64 = 0.250;
/// A worker below this share of the fastest one does not dictate the size of the tiles.
pub const USEFUL_SHARE: f64 = 0.08;
/// Nor does one whose first tile is not back within this share of the time that the job takes on one worker alone.
pub const USEFUL_START: f64 = 0.5;
/// A band or panel, so that one operand can always be sent, hashed and held beside others.
pub const OPERAND_BYTES_MAX: u64 = 256 << 20;
/// A worker holds the operands of the running tile and of the next, and both answers: a tile takes at most this
/// part of its memory.
pub const TILE_MEMORY_SHARE: u64 = 4;
/// What waits takes a quarter of a byte a tile, and a choice looks at every band and panel: this keeps the one under a
/// MiB and the other under a millisecond, short against tiles of a job that large.
pub const TILES_MAX: u64 = 1 << 21;

/// Additions and multiplications of an f32 product in the time in which an elementwise operation moves one byte of an operand
/// or of the result: some 200 · 10⁹ of the one and 12 · 10⁹ of the other in a second, on the machines of DESIGN §8. A guess to
/// start with: what is measured replaces it.
pub const FLOPS_PER_BYTE: f64 = 16.0;

/// Attempts in flight at a peer unless it says less: deep enough to hide the transfer of an operand on a slow
/// link behind the tiles that need none.
pub const IN_FLIGHT_MAX: usize = 16;
/// Attempts in flight at this node: one runs, the next is ready when it ends.
pub const IN_FLIGHT_LOCAL: usize = 2;
/// Panels and a band that this node's executor keeps packed at a time; below what it may hold, since packed halves
/// are widened.
pub const LOCAL_GROUP_BYTES: u64 = 44 << 20;
/// The same as a part of operands and product: beside them a node may use a quarter, and answers take some of that.
pub const LOCAL_GROUP_SHARE: u64 = 8;
/// Operand and answer bytes in flight at one peer, unless one tile alone is more: bounds what is queued on a
/// connection and what its loss costs.
pub const IN_FLIGHT_BYTES_MAX: u64 = 512 << 20;
/// Tiles queued beyond the running one, so that a late message does not leave a worker idle.
pub const PREFETCH_TILES: f64 = 2.0;
/// How much longer than predicted a transfer may take before it leaves a worker idle.
pub const PREFETCH_MARGIN: f64 = 1.5;

/// Predicted time of an offloaded job, as a share of the time on this node alone, above which the job stays here: predictions
/// are off by about the rest.
pub const OFFLOAD_TIME_SHARE: f64 = 0.88;
/// Weight of one job in the offload history of its class.
pub const OFFLOAD_LEARN_WEIGHT: f64 = 0.3;
/// Part of the history that each job kept here for it forgets: offloading is tried again after some ten jobs.
pub const OFFLOAD_FORGET_WEIGHT: f64 = 0.05;
/// Upper bound of one job's actual time over its predicted time in the history: a peer may have died in it.
pub const OFFLOAD_RATIO_MAX: f64 = 2.0;

/// How long a job that is to run on peers waits for those that are connecting (DESIGN §4.1).
pub const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Nothing from an attempt for this long after it was due, and it counts as failed (DESIGN §7).
pub const SILENCE: Duration = Duration::from_secs(5);
/// The same for long attempts: so many times what was predicted.
pub const SILENCE_FACTOR: f64 = 4.0;
/// An attempt this many times over its prediction is late: another worker may take it too.
pub const LATE_FACTOR: f64 = 1.6;
/// Lateness below this is noise of threads and timers.
pub const LATE_SLACK: f64 = 0.005;
/// A late attempt is expected to need this share of the time that it has taken already: having been wrong once,
/// the prediction is wrong for the rest, too.
pub const LATE_REST: f64 = 0.5;
/// A copy elsewhere must be done sooner by this share of its own time, or it is work for nothing.
pub const HEDGE_MARGIN: f64 = 0.15;
/// Copies of one task at a time, beyond what redundancy asks for.
pub const HEDGES_MAX: usize = 1;

/// Overloads of a peer after which a tile goes elsewhere: with the pauses below, some seconds.
pub const OVERLOADS_MAX: u32 = 8;
/// Overloads of this node after which a job fails, since nobody else is left: with the pauses below, a minute.
pub const OVERLOADS_LOCAL_MAX: u32 = 36;
/// First pause after a worker said that it is overloaded; doubles up to the last.
pub const OVERLOAD_PAUSE: Duration = Duration::from_millis(25);
/// Longest pause after overload.
pub const OVERLOAD_PAUSE_MAX: Duration = Duration::from_secs(2);
/// First pause after a worker failed; doubles up to the last.
pub const FAILURE_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause after failures.
pub const FAILURE_PAUSE_MAX: Duration = Duration::from_secs(30);
/// Consecutive failures after which nothing waits for a worker any more, though the worker is still tried.
pub const FAILURES_MAX: u32 = 3;

/// Jobs with waiting tiles that are considered for one event: bounds the cost of a queue of thousands.
pub const JOBS_CONSIDERED: usize = 128;
/// Jobs in a row that gain nothing from a worker after which the worker is left idle: the next job will hardly gain.
pub const REFUSALS_MAX: usize = 8;
/// Head start of short jobs: among jobs of one priority, a job is ordered by its submission plus this many times its own
/// length. Short jobs pass long ones, and no job waits for ever.
pub const AGING_FACTOR: f64 = 4.0;

/// Weight of a new observation against all before.
pub const LEARN_WEIGHT: f64 = 0.25;
/// Weight of the first observation against an advert, and of a second surprise in a row.
pub const LEARN_WEIGHT_FAST: f64 = 0.6;
/// One observation counts as at most so many times (or that part of) what was expected.
pub const SURPRISE_MAX: f64 = 4.0;
/// Beyond this factor an observation is a surprise.
pub const SURPRISE: f64 = 1.8;
/// Shorter computations measure the fixed cost, not the rate.
pub const LEARN_SECONDS_MIN: f64 = 0.000_5;
/// Smaller transfers measure the round trip, not the link.
pub const LEARN_BYTES_MIN: u64 = 64 << 10;

/// Bytes of operands and answer that a check goes through in a second, before one has been timed.
pub const CHECK_BYTES_PER_S: f64 = 8e9;

/// What checking a tile should cost at most, as a share of computing it here.
pub const CHECK_SHARE: f64 = 0.08;
/// A tile whose check costs this share of computing it is computed here: giving it away wins next to nothing.
pub const CHECK_SHARE_MAX: f64 = 0.5;

const _: () = assert!(CHECK_SHARE < CHECK_SHARE_MAX);
const _: () = assert!(TILE_SIDE_MIN.is_multiple_of(TILE_ALIGNMENT));
const _: () = assert!(TILE_SECONDS_MIN < TILE_SECONDS && TILE_SECONDS < TILE_SECONDS_ALONE);
const _: () = assert!(TILE_SECONDS_ALONE < WHOLE_SECONDS);
const _: () = assert!(IN_FLIGHT_LOCAL >= 1 && IN_FLIGHT_MAX >= 2);
const _: () = assert!(LATE_FACTOR > 1.0 && SILENCE_FACTOR > LATE_FACTOR);
const _: () = assert!(SURPRISE < SURPRISE_MAX);
const _: () = assert!(CONNECT_WAIT.as_nanos() < SILENCE.as_nanos());
