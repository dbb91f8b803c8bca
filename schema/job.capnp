@0xdc4c9db29b9da2b9;
# Jobs as programs see them: options, progress and report.
#
# Evolution: fields, methods and enumerants are only added, at the end, with defaults that mean
# "as before". Nothing is renumbered, retyped or removed.

enum Place {
  auto @0;
  # On the nodes where the cost model predicts the earliest end.
  local @1;
  # On the accepting node only.
  remote @2;
  # On peers; on the accepting node only where no admitted peer can compute.
}

enum Verify {
  standard @0;
  # Every tile that a peer computed is checked.
  full @1;
  # As `standard`, and the whole result is checked again at the end.
}

struct MatmulOptions {
  # Of every operation on tensors; the name is that of the first.
  place @0 :Place;
  verify @1 :Verify;
  priority @2 :Int8;
  # Tasks of higher priority start first; 0 is ordinary.
  deadlineMs @3 :UInt64;
  # Milliseconds from the arrival of the operands until the job fails with DeadlineExceeded;
  # 0 is no deadline.
  redundancy @4 :UInt8 = 1;
  # Different workers that compute each task.
  maxRetries @5 :UInt8 = 3;
  # Retries of a failed task before the accepting node computes it.
}

interface Job {
  # A running job. The job is cancelled once this capability and its result are both dropped.

  progress @0 () -> (progress :Progress);
  # The latest progress; never waits.

  watch @1 (sink :ProgressSink) -> ();
  # Sends progress as it changes, with flow control; returns when the job has ended.

  cancel @2 () -> ();
  # Ends the work on every node. Calls that wait for the job fail with Cancelled.

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
  # All tasks of the job; 0 until the job is planned.
  bytesSent @2 :UInt64;
  # Tensor bytes sent to peers for this job.
  bytesReceived @3 :UInt64;
  # Tensor bytes received from peers for this job.
}

struct JobReport {
  m @0 :UInt64;
  k @1 :UInt64;
  n @2 :UInt64;
  # A product is [m, k] times [k, n]. Of other operations the result is [m, n], and k is 1.
  dtype @3 :Text;
  # Name of the result's dtype, such as `f32`.
  seconds @4 :Float64;
  # Seconds from the operands being at the accepting node to the whole, checked result being there.
  gflops @5 :Float64;
  # Additions and multiplications (2·m·k·n of a product) / seconds / 10⁹.
  tasks @6 :TaskCounts;
  workers @7 :List(WorkerShare);
  # The workers whose results were accepted.
  bytesSent @8 :UInt64;
  bytesReceived @9 :UInt64;
  # Tensor bytes sent to and received from peers.
  verification @10 :Verification;
  mode @11 :Text;
  # `local`, `remote` or `mixed`.
  predictedSeconds @12 :Float64;
  # The plan's prediction of `seconds`.
}

struct TaskCounts {
  total @0 :UInt32;
  # Tasks of the job.
  remote @1 :UInt32;
  # Tasks whose accepted result came from a peer.
  local @2 :UInt32;
  # Tasks that the accepting node computed.
  retried @3 :UInt32;
  # Attempts after a failure or a failed check.
  hedged @4 :UInt32;
  # Second attempts because the first was late.
}

struct WorkerShare {
  peer @0 :Text;
  # Peer id of the worker; the accepting node's own id for local tasks.
  name @1 :Text;
  tasks @2 :UInt32;
  # Tasks whose result was accepted.
  seconds @3 :Float64;
  # Compute time of those tasks in seconds, as the worker reports it.
}

struct Verification {
  method @0 :Text;
  verdict @1 :Text;
  # Verdict of the weakest part: `local`, `verified`, `tolerance-checked` or `unchecked`.
  rejected @2 :List(Rejection);
  seconds @3 :Float64;
  # Seconds that the checks took on the accepting node.
}

struct Rejection {
  # A result that failed its check.
  peer @0 :Text;
  why @1 :Text;
}

struct JobStatus {
  # A job of a node, as it stands; an operation on tensors or a generation.
  id @0 :UInt64;
  # Number of the job on its node.
  kind @1 :Text;
  # What is computed: `product`, another result of an operation on tensors, or `generation`.
  subject @2 :Text;
  # Shape and dtype of a product, such as `1024x512x256 f32`; name of the model of a generation.
  api @3 :Text;
  # Where the job was submitted: `rpc`, `http` or `node`.
  client @4 :Text;
  # What the client calls itself; empty where it does not say.
  state @5 :Text;
  # `waiting`, `running`, `done`, `failed` or `cancelled`.
  done @6 :UInt64;
  # Tasks of an operation or tokens of answers that are done.
  total @7 :UInt64;
  # How many there will be at most; 0 while that is not known.
  submittedUnixMs @8 :UInt64;
  startedUnixMs @9 :UInt64;
  endedUnixMs @10 :UInt64;
  deadlineUnixMs @11 :UInt64;
  # Milliseconds since 1970; 0 for a time that has not come, or no deadline.
  verdict @12 :Text;
  # Of a job that is done: `local`, `verified`, `audited`, `tolerance-checked` or `unchecked`.
  errorKind @13 :Text;
  # Of a job that failed: the kind of the error, such as `Overloaded`.
  error @14 :Text;
  # Of a job that failed: a sentence for people.
  promptDone @15 :UInt64;
  # Of a generation: tokens that precede the next one of its answer and are computed.
  promptTotal @16 :UInt64;
  # How many those will be; 0 while that is not known.
  stages @17 :List(JobStage);
  # Of a generation: the nodes that compute it, in order; empty while there are none.
  failovers @18 :UInt32;
  # Chains of nodes that it has lost.
  failover @19 :Failover;
  # The last of these losses; null where there was none.
}

struct JobStage {
  # A node's part in a generation.
  peer @0 :Text;
  first @1 :UInt32;
  end @2 :UInt32;
  # Layers of the stage, from 0; `end` is exclusive.
}

struct Failover {
  # What became of a generation that lost the nodes that computed it.
  from @0 :List(JobStage);
  to @1 :List(JobStage);
  # Empty until other nodes are found.
  why @2 :Text;
  # A clause for people.
}
