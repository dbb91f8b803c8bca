@0x98c2039d1970f110;
# The service that a node offers to programs; `Node` is the bootstrap capability of a connection.
#
# Errors: every failure is an exception whose text is `Kind: sentence`, Kind being one of
# InvalidInput, Unauthorized, NotFound, Overloaded, Unavailable, DeadlineExceeded, Cancelled,
# VerificationFailed, Internal. Programs decide by the kind alone. RPC libraries may put
# a prefix before the kind (such as `remote exception: `).
#
# Evolution: fields, methods and enumerants are only added, at the end, with defaults that mean
# "as before". Nothing is renumbered, retyped or removed. A method that a node does not have
# fails as Cap'n Proto's `unimplemented`.

using Tensor = import "tensor.capnp";
using Job = import "job.capnp";
using Model = import "model.capnp";
using Plan = import "plan.capnp";
using Membership = import "membership.capnp";

interface Node {
  hello @0 () -> (version :Text);
  # Version of the binary. Never waits: distinguishes a node from another program at this port.

  upload @1 (dtype :Tensor.DType, rows :UInt64, cols :UInt64) -> (sink :Tensor.TensorSink);
  # Reserves memory for a tensor [rows, cols] and returns the sink for its bytes. Overloaded where
  # the memory does not suffice.

  matmul @2 (a :Tensor.Tensor, b :Tensor.Tensor, options :Job.MatmulOptions)
      -> (job :Job.Job, product :Tensor.Tensor);
  # C[m, n] = A[m, k] · B[k, n]. Returns at once, before the operands have arrived or been
  # computed: `a` and `b` may be promises and products of other jobs. Both must belong to this
  # connection. Errors of the operands are returned by `job` and `product`.

  peers @3 () -> (peers :List(PeerStatus));
  status @4 () -> (status :NodeStatus);

  connect @5 (address :Text, timeoutMs :UInt64) -> (peer :Text);
  # Connects to a multiaddr and returns the peer id once both sides have admitted each other.
  # With a timeout of 0 the node's default applies.

  probeLink @6 (peer :Text, messageBytes :UInt64, rounds :UInt32) -> (probe :LinkProbe);
  # Measures the link to a peer with `rounds` messages of `messageBytes` and as many small
  # round trips.

  counters @7 () -> (connection :Counters, total :Counters);
  # Counters of this connection, and of all connections since the node started.

  models @8 () -> (models :List(Model.ModelStatus));
  # The models that this node serves.

  model @9 (name :Text, timeoutMs :UInt64) -> (model :Model.Model);
  # A served model, once it is loaded; a model that is not on the node's disk is fetched first. An
  # empty name means the only model. NotFound for a model that is not served; Unavailable where the
  # model is not ready in time or cannot be fetched. With a timeout of 0 the node's default applies.

  topology @10 () -> (topology :Topology);
  # The pool as this node sees it: its live nodes, and the connections between them.

  checkPeer @11 (peer :Text, timeoutMs :UInt64) -> (roundTripUs :Float64);
  # One round trip to a connected peer (by peer id or name) over the existing connection, in
  # microseconds. DeadlineExceeded where the peer does not answer in time. With a timeout of 0 the
  # node's default applies.

  planModel @12 (model :Text) -> (plan :Plan.ModelPlan);
  # Where the layers of a model would be placed on the pool as this node sees it, and where they are
  # placed. An empty name means the only model that the pool serves. NotFound for a model that no
  # node serves.

  jobs @13 () -> (jobs :List(Job.JobStatus));
  # Products and generations that were asked of this node through any API, the latest first: all that
  # run, and the last that ended.

  add @14 (a :Tensor.Tensor, b :Tensor.Tensor, options :Job.MatmulOptions)
      -> (job :Job.Job, sum :Tensor.Tensor);
  # C = A + B, element by element, of two tensors of one shape and dtype (f32, f64 or i32); the bits
  # are the same wherever it is computed. InvalidInput for others, and where a sum leaves i32.
  # Otherwise as `matmul`.

  login @15 (key :Text) -> (node :Node);
  # The node, for whoever shows its API key; Unauthorized for another key. Where a node requires a key, its
  # bootstrap capability answers this method only: `hello` is Unauthorized there, and says what to do.
  # Where it requires none, every key is right. Nodes before this method require none.

  membership @16 () -> (membership :Membership.Membership);
  # Who belongs to the node's pool. Unavailable for a node without a network.

  loadModel @17 (model :Text, timeoutMs :UInt64) -> (model :Model.ModelStatus);
  # Makes the node serve a model (by name, path or download source) besides those that it serves. Returns once the model is
  # loaded. Overloaded with the sizes where the memory does not suffice; Unavailable after the timeout, in which case loading
  # goes on. With a timeout of 0 the node's default applies.

  dropModel @18 (model :Text) -> (model :Model.ModelStatus);
  # Drops a model in the whole pool: no node serves it until it is loaded again. NotFound for a model that no node serves.

  waysBack @19 () -> (ways :List(WayBack));
  # Whether others can open connections to this node: a few connected peers try its addresses, which takes seconds. Peers that
  # do not answer are left out.
}

struct Topology {
  nodes @0 :List(TopologyNode);
  # The answering node comes first.
  links @1 :List(TopologyLink);
  # Two for every connection, one in each direction.
}

struct TopologyNode {
  peer @0 :Text;
  name @1 :Text;
  master @2 :Bool;
  models @3 :List(Text);
  # Names of the models that the node serves.
  device @4 :Text;
  # What the node computes with.
  memoryBytes @5 :UInt64;
  # Memory that the node offers, in bytes.
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
  # What the link can carry in this direction; 0 while unknown.
  transport @4 :Text;
  # `tcp` or `quic`.
  foundBy @5 :Text;
  # How `from` found `to`: `mdns`, `manual`, `gossip`; `incoming` where `to` connected to `from`.
  sentBytesPerS @6 :Float64;
  # What passes in this direction now, averaged over the last 3 s; 0: nothing, or unknown. Of a connection of the answering node
  # it is up to date; of one between two others it comes from the advert of `from` and is up to 3 s older.
}

struct PeerStatus {
  peer @0 :Text;
  name @1 :Text;
  state @2 :Text;
  # `connecting`, `connected`, `quarantined`, `gone`, or, of a node that was never connected, `refused` (one of the two does not
  # admit the other) or `unreachable`. The peer id of an unreachable node may be unknown: it is empty then.
  addresses @3 :List(Text);
  trust @4 :Float64;
  # Trust from 0 to 1, from checked work only.
  quarantined @5 :Bool;
  why @6 :Text;
  # Why the peer is quarantined or gone.
  transport @7 :Text;
  # `tcp` or `quic`.
  foundBy @8 :Text;
  # `mdns`, `manual`, `gossip` or `incoming`.
  rttMs @9 :Float64;
  # Milliseconds; 0 while unknown.
  bytesPerS @10 :Float64;
  # Speed of the link towards the peer; 0 while unknown.
  gflops @11 :Float64;
  # Measured f32 speed.
  threads @12 :UInt32;
  tasksInFlight @13 :UInt32;
  tasksChecked @14 :UInt64;
  # The peer's tasks whose result passed its check.
  version @15 :Text;
  # Version of the peer's binary; empty while unknown.
  federation @16 :Bool;
  # Whether the peer takes part in votes on answers.
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
  # Connected peers.
  jobsRunning @13 :UInt32;
  jobsDone @14 :UInt64;
  jobsFailed @15 :UInt64;
  # Jobs of all kinds: those that wait or run, and those that ended since the start.
  tasksServed @16 :UInt64;
  # Tasks computed for peers.
  bytesSent @17 :UInt64;
  bytesReceived @18 :UInt64;
  # Tensor bytes sent to and received from peers.
  memory @19 :List(MemoryUse);
  # What memoryUsedBytes consist of.
  api @20 :Text;
  # Address of the HTTP API; empty where there is none.
  models @21 :List(ModelState);
  # Models that can be asked for at this node.
  master @22 :Text;
  # Peer id of the pool's master; empty while there is none.
  federation @23 :Bool;
  # Whether the node takes part in votes on answers.
  federationPeers @24 :UInt32;
  # Other nodes that do.
  devices @25 :List(DeviceStatus);
  # GPUs of the machine; none where the node was not to look for them.
}

struct DeviceStatus {
  name @0 :Text;
  kind @1 :Text;
  # discrete, integrated, virtual, software or unknown.
  backend @2 :Text;
  # Vulkan, Metal or DX12.
  driver @3 :Text;
  used @4 :Bool;
  # Whether it computes layers.
  why @5 :Text;
  # Why it does not.
  memoryUsedBytes @6 :UInt64;
  memoryLimitBytes @7 :UInt64;
  # Of the memory that its layers lie in; 0 where it is not used.
}

struct MemoryUse {
  purpose @0 :Text;
  # tensors, operands, results, packs, weights, sessions, audits or downloads.
  bytes @1 :UInt64;
}

struct ModelState {
  name @0 :Text;
  state @1 :Text;
  # absent, loading, ready, unplaced or failed.
  why @2 :Text;
  # Why the model cannot be asked, where a reason is known.
}

struct WayBack {
  peer @0 :Text;
  # Who tried.
  name @1 :Text;
  # What it calls itself.
  address @2 :Text;
  # The address of this node, a multiaddr.
  reached @3 :Bool;
  # Whether something answered there.
}

struct LinkProbe {
  peer @0 :Text;
  transport @1 :Text;
  messageBytes @2 :UInt64;
  bytesPerS @3 :Float64;
  # Median speed towards the peer.
  roundTripUs @4 :Float64;
  # Median round trip of a 16-byte message, in microseconds.
}

struct Counters {
  bytesIn @0 :UInt64;
  # Bytes read from the socket, framing included.
  bytesOut @1 :UInt64;
  # Bytes written to the socket, framing included.
  connections @2 :UInt32;
  # Open connections.
  tensors @3 :UInt32;
  # Tensors held, including running uploads and products that are not yet computed.
  tensorBytes @4 :UInt64;
  # Memory reserved for these tensors.
  jobsRunning @5 :UInt32;
}
