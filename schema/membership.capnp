@0xb4d7a1c93e5f2086;
# Who belongs to the pool of a node: the calls of its owner. Times are seconds since 1970.
#
# Evolution: as in `node.capnp`.

interface Membership {
  list @0 () -> (members :Members);
  # This node first, then members and revoked peers as far as it knows, then nodes that wait to be accepted.

  invite @1 (role :Text, validS :UInt64, memberForS :UInt64, uses :UInt32, pin :Bool) -> (invitation :Invitation);
  # Opens an invitation for up to `uses` nodes. `role` is `member` or `client`; their certificates are valid for `memberForS`
  # seconds from the moment that they join. With `pin`, one node may join with six digits instead of the token.
  # Unauthorized where this node may admit nobody; Overloaded where too many invitations are open.

  join @2 (invitation :Text, addresses :List(Text)) -> (joined :Joined);
  # Joins the pool of a token or of a PIN. With a PIN, members are asked at `addresses`, or on the local network where there are
  # none. Returns once a member is connected, or cannot be within seconds.

  ask @3 (addresses :List(Text)) -> (asked :List(Asked));
  # Asks members to admit this node; people compare the digits on both screens. Addresses as for `join`.

  awaitAcceptance @4 (peer :Text, digits :Text, timeoutMs :UInt64) -> (joined :Joined);
  # Waits until a member that was asked has accepted this node, and joins its pool. `digits` are those on its screen:
  # VerificationFailed where they are others here.

  accept @5 (node :Text, digits :Text, role :Text, memberForS :UInt64) -> (accepted :Member);
  # Accepts a waiting node, by name or peer id, whose screen shows `digits`. VerificationFailed where they are others here; the
  # node is turned away then.

  revoke @6 (node :Text) -> (revoked :Member);
  # Turns a waiting node away, or revokes a member for good, with everyone that it admitted. Unauthorized where this node does not
  # hold the pool's key.

  compare @7 (node :Text) -> (pending :Member);
  # Has a waiting node that shows no digits yet compare digits with this member; returns it with its digits, for people to compare
  # before `accept`. Unavailable where the node cannot be asked, DeadlineExceeded where it does not answer.
}

struct Members {
  pool @0 :Text;
  # By which people tell pools apart; empty where the pool is open.
  open @1 :Bool;
  # Whether whoever is on the network is in.
  holdsKey @2 :Bool;
  # Whether this node holds the pool's key.
  members @3 :List(Member);
}

struct Member {
  peer @0 :Text;
  name @1 :Text;
  state @2 :Text;
  # `this node`, `connected`, `away`, `revoked`, `pending` (it can be accepted) or `comparing` (it may accept this node).
  role @3 :Text;
  # `member` or `client`; empty while unknown.
  admittedBy @4 :Text;
  # Name or peer id of the member that admitted it; empty where the pool's key did.
  expires @5 :UInt64;
  # When its certificate expires; 0 while unknown.
  digits @6 :Text;
  # Six digits of a waiting node that has compared them, and of a member that compares them with this node.
}

struct Invitation {
  token @0 :Text;
  pin @1 :Text;
  # Empty where none was asked for.
  expires @2 :UInt64;
  # When the token expires.
  pinLifeS @3 :UInt64;
  # Seconds that the PIN is open.
}

struct Joined {
  pool @0 :Text;
  member @1 :Text;
  # Name of the member that admitted this node.
  role @2 :Text;
  connected @3 :UInt32;
  # Peers that this node is connected to now.
}

struct Asked {
  peer @0 :Text;
  name @1 :Text;
  pool @2 :Text;
  digits @3 :Text;
  # Six digits that its screen shows too.
}
