@0xdc4c9db29b9da2b9;
# Jobs as programs see them: what is asked for, how it goes on, what came of it.
#
# Evolution: fields, methods and enumerants are only added, at the end, with defaults that mean
# "as before". Nothing is renumbered, retyped or removed.

enum Place {
  auto @0;
  # Wherever the cost model says it finishes soonest.
  local @1;
  # On the accepting node only.
  remote @2;
  # Never on the accepting node while an admitted peer can; there rather than fail.
}

enum Verify {
  standard @0;
  # Every part that a peer computed is checked.
  full @1;
  # As standard, and the whole product is checked once more at the end.
}

struct MatmulOptions {
  place @0 :Place;
  verify @1 :Verify;
  priority @2 :Int8;
  # Higher goes first; 0 is ordinary.
  deadlineMs @3 :UInt64;
  # Milliseconds from the operands being there until the job fails with DeadlineExceeded;
  # 0 is no deadline.
  redundancy @4 :UInt8 = 1;
  # How many different workers compute each task.
  maxRetries @5 :UInt8 = 3;
  # How often a task is tried again after failures before the accepting node takes it.
}

interface Job {
  # A job under way. It is cancelled once both this capability and its product are dropped.

  progress @0 () -> (progress :Progress);
  # The latest, at once.

  watch @1 (sink :ProgressSink) -> ();
  # Sends progress as it changes, never more than the sink takes; returns when the job has ended.

  cancel @2 () -> ();
  # Ends the work on every node. Whoever waits for the job gets Cancelled.

  report @3 () -> (report :JobReport);
  # Waits for the end of the job; fails as the job failed.
}

interface ProgressSink {
  update @0 (progress :Progress) -> stream;
}

struct Progress {
  tasksDone @0 :UInt32;
  # Tasks whose results are accepted and merged.
  tasksTotal @1 :UInt32;
  # 0 until the job is planned.
  bytesSent @2 :UInt64;
  # Tensor bytes sent to peers for this job.
  bytesReceived @3 :UInt64;
  # Tensor bytes received from peers for this job.
}

struct JobReport {
  m @0 :UInt64;
  k @1 :UInt64;
  n @2 :UInt64;
  # The product is [m, k] times [k, n].
  dtype @3 :Text;
  # Of the product, by name (`f32`).
  seconds @4 :Float64;
  # From the operands being at the accepting node to the whole, checked product being there.
  gflops @5 :Float64;
  # 2·m·k·n / seconds / 10⁹.
  tasks @6 :TaskCounts;
  workers @7 :List(WorkerShare);
  # Who computed what was accepted.
  bytesSent @8 :UInt64;
  bytesReceived @9 :UInt64;
  # Tensor bytes sent to and received from peers.
  verification @10 :Verification;
  mode @11 :Text;
  # `local`, `remote` or `mixed`.
  predictedSeconds @12 :Float64;
  # What the plan predicted for `seconds`.
}

struct TaskCounts {
  total @0 :UInt32;
  # Tasks the job was cut into.
  remote @1 :UInt32;
  # Accepted from peers.
  local @2 :UInt32;
  # Computed on the accepting node.
  retried @3 :UInt32;
  # Started again after a failure or a failed check.
  hedged @4 :UInt32;
  # Started a second time because the first was late.
}

struct WorkerShare {
  peer @0 :Text;
  # Peer id; the accepting node's own for local tasks.
  name @1 :Text;
  tasks @2 :UInt32;
  # Accepted tasks.
  seconds @3 :Float64;
  # Compute time of those tasks, as the worker reports it.
}

struct Verification {
  method @0 :Text;
  verdict @1 :Text;
  # `local`, `verified`, `tolerance-checked` or `unchecked`: that of the weakest part.
  rejected @2 :List(Rejection);
  seconds @3 :Float64;
  # Time the checks took on the accepting node.
}

struct Rejection {
  # A result that failed its check.
  peer @0 :Text;
  why @1 :Text;
}
