@0x98c2039d1970f110;
# The service that a node offers to programs; `Node` is what a connection starts with.
#
# Errors: every failure is an exception whose text is `Kind: sentence`, Kind being one of
# InvalidInput, Unauthorized, NotFound, Overloaded, Unavailable, DeadlineExceeded, Cancelled,
# VerificationFailed, Internal. A program decides by the kind alone. RPC libraries may put
# words of their own before the kind (such as `remote exception: `).
#
# Evolution: fields, methods and enumerants are only added, at the end, with defaults that mean
# "as before". Nothing is renumbered, retyped or removed. A method that a node does not have
# fails as Cap'n Proto's `unimplemented`.

using Tensor = import "tensor.capnp";
using Job = import "job.capnp";
using Model = import "model.capnp";
using Plan = import "plan.capnp";

interface Node {
  hello @0 () -> (version :Text);
  # Version of the binary. Never waits: tells a node from something else that listens here.

  upload @1 (dtype :Tensor.DType, rows :UInt64, cols :UInt64) -> (sink :Tensor.TensorSink);
  # Reserves memory for a tensor [rows, cols] and offers to be sent its bytes. Overloaded where
  # the memory is not to be had.

  matmul @2 (a :Tensor.Tensor, b :Tensor.Tensor, options :Job.MatmulOptions)
      -> (job :Job.Job, product :Tensor.Tensor);
  # C[m, n] = A[m, k] · B[k, n]. Returns at once, before the operands have arrived or been
  # computed: `a` and `b` may be promises, and products of other jobs. Both must be of this
  # connection. What is wrong with them shows in `job` and `product`.

  peers @3 () -> (peers :List(PeerStatus));
  status @4 () -> (status :NodeStatus);

  connect @5 (address :Text, timeoutMs :UInt64) -> (peer :Text);
  # Connects to a multiaddr; the peer id once both sides have admitted each other.
  # A timeout of 0 is the node's own.

  probeLink @6 (peer :Text, messageBytes :UInt64, rounds :UInt32) -> (probe :LinkProbe);
  # Measures the link to a peer with `rounds` messages of `messageBytes` and as many small
  # round trips.

  counters @7 () -> (connection :Counters, total :Counters);
  # What this connection, and all connections since the start, have moved and hold.

  models @8 () -> (models :List(Model.ModelStatus));
  # The models that this node serves.

  model @9 (name :Text, timeoutMs :UInt64) -> (model :Model.Model);
  # One of them, once it is loaded; one that is not on the node's disk is fetched first. An empty
  # name means the only one. NotFound for a model that is not served; Unavailable where it is not
  # ready in time, and where it cannot be had. A timeout of 0 is the node's own.

  topology @10 () -> (topology :Topology);
  # The pool as this node sees it: every node that is there, and the connections between them.

  checkPeer @11 (peer :Text, timeoutMs :UInt64) -> (roundTripUs :Float64);
  # One round trip to a connected peer (by peer id or name) and back, over the connection that is
  # there; microseconds. DeadlineExceeded where it does not answer in time. A timeout of 0 is the
  # node's own.

  planModel @12 (model :Text) -> (plan :Plan.ModelPlan);
  # Where the layers of a model would be placed on the pool as this node sees it, and where they are.
  # An empty name means the only model that the pool serves. NotFound for one that nobody serves.
}

struct Topology {
  nodes @0 :List(TopologyNode);
  # The node that was asked first.
  links @1 :List(TopologyLink);
  # One each way for every connection.
}

struct TopologyNode {
  peer @0 :Text;
  name @1 :Text;
  master @2 :Bool;
  models @3 :List(Text);
  # Names of those that it serves.
  device @4 :Text;
  # What it computes with.
  memoryBytes @5 :UInt64;
  # That it gives.
  gflops @6 :Float64;
  # Measured f32 speed.
}

struct TopologyLink {
  from @0 :Text;
  to @1 :Text;
  # Peer ids.
  rttMs @2 :Float64;
  # Milliseconds; 0 while unknown.
  bytesPerS @3 :Float64;
  # In this direction; 0 while unknown.
  transport @4 :Text;
  # `tcp` or `quic`.
  foundBy @5 :Text;
  # How `from` found `to`: `mdns`, `manual`, `gossip`; `incoming` where it was found by it.
}

struct PeerStatus {
  peer @0 :Text;
  name @1 :Text;
  state @2 :Text;
  # `connecting`, `connected`, `quarantined` or `gone`.
  addresses @3 :List(Text);
  trust @4 :Float64;
  # 0 to 1, from checked work only.
  quarantined @5 :Bool;
  why @6 :Text;
  # Why it is quarantined or gone.
  transport @7 :Text;
  # `tcp` or `quic`.
  foundBy @8 :Text;
  # `mdns`, `manual`, `gossip` or `incoming`.
  rttMs @9 :Float64;
  # Milliseconds; 0 while unknown.
  bytesPerS @10 :Float64;
  # Towards the peer; 0 while unknown.
  gflops @11 :Float64;
  # Measured f32 speed.
  threads @12 :UInt32;
  tasksInFlight @13 :UInt32;
  tasksChecked @14 :UInt64;
  # Tasks of its that passed their check.
}

struct NodeStatus {
  peer @0 :Text;
  name @1 :Text;
  version @2 :Text;
  uptimeS @3 :Float64;
  # Seconds.
  listening @4 :List(Text);
  # libp2p multiaddrs with /p2p/.
  rpc @5 :Text;
  # Address of this service.
  poolKey @6 :Bool;
  # Whether a pool key guards admission.
  threads @7 :UInt32;
  gflops @8 :Float64;
  # Measured f32 speed.
  isa @9 :Text;
  # Instruction set of the kernels.
  memoryUsedBytes @10 :UInt64;
  memoryLimitBytes @11 :UInt64;
  peers @12 :UInt32;
  # Connected ones.
  jobsRunning @13 :UInt32;
  jobsDone @14 :UInt64;
  jobsFailed @15 :UInt64;
  tasksServed @16 :UInt64;
  # Done for peers.
  bytesSent @17 :UInt64;
  bytesReceived @18 :UInt64;
  # Tensor bytes to and from peers.
}

struct LinkProbe {
  peer @0 :Text;
  transport @1 :Text;
  messageBytes @2 :UInt64;
  bytesPerS @3 :Float64;
  # Median, towards the peer.
  roundTripUs @4 :Float64;
  # Median of a 16-byte message, in microseconds.
}

struct Counters {
  bytesIn @0 :UInt64;
  # Bytes read from the socket, framing included.
  bytesOut @1 :UInt64;
  # Bytes written to the socket, framing included.
  connections @2 :UInt32;
  # Open now.
  tensors @3 :UInt32;
  # Held now, uploads under way and products not yet there included.
  tensorBytes @4 :UInt64;
  # Memory reserved for those.
  jobsRunning @5 :UInt32;
}
